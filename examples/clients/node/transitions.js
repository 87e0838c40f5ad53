/** N-step transitions from environment steps (PROTOCOL.md, "What `apex_dqn` puts into them"). */

import { UserError, zeros } from "./wire.js";

/**
 * Priority of a new item. The protocol defines it by the policy's values, which random actions do not have.
 * The learner replaces it when it samples the item.
 */
const PRIORITY = 1.0;

/**
 * An item of the run's table; its keys are the names of the columns.
 * @typedef {{action: number, n_step_return: number, discount: number, learner_step: number,
 *   observation: Float32Array, next_observation: Float32Array}} Transition
 */

/** Makes the n-step transitions of one environment. */
export class NStepTransitions {
  #nStep;
  #discount;
  #clipRewards;
  #window = [];

  /** @param {{nStep: number, discount: number, clipRewards: boolean}} settings */
  constructor({ nStep, discount, clipRewards }) {
    this.#nStep = nStep;
    this.#discount = discount;
    this.#clipRewards = clipRewards;
  }

  /**
   * Add one step. Returns the transitions that it completes.
   * @param {{observation: Float32Array, action: number, learner_step: number}} before the observation and the action
   * @param {{observation: Float32Array, reward: number, terminated: boolean, truncated: boolean}} after the result of the step
   * @returns {Transition[]} oldest first; at an episode's end also those of fewer than n rewards
   */
  add(before, after) {
    const reward = this.#clipRewards ? Math.max(-1, Math.min(1, after.reward)) : after.reward;
    this.#window.push({ ...before, reward });
    const items = [];
    const ended = after.terminated || after.truncated;
    while (this.#window.length === this.#nStep || (ended && this.#window.length > 0)) items.push(this.#oldest(after));
    return items;
  }

  /** The transition from the window's first step over all its rewards. Removes that step from the window. */
  #oldest({ observation: next_observation, terminated }) {
    const rewards = this.#window.map(({ reward }) => reward);
    const { observation, action, learner_step } = this.#window.shift();
    return {
      action,
      n_step_return: rewards.reduceRight((later, reward) => reward + this.#discount * later, 0),
      discount: terminated ? 0 : this.#discount ** rewards.length,
      learner_step,
      observation,
      next_observation,
    };
  }
}

/**
 * The buffers of an insert of M items.
 * @param {Transition[]} items consecutive ones of one environment
 * @param {{name: string, dtype: string, shape: number[]}[]} columns of the run's schema
 * @returns {import("./wire.js").WireArray[]} `priorities` [M] and `column.NAME` [M, ...shape]
 */
export function chunkOf(items, columns) {
  const priorities = zeros("priorities", "float64", [items.length]);
  priorities.values.fill(PRIORITY);
  return [priorities, ...columns.map((column) => columnOf(items, column))];
}

function columnOf(items, { name, dtype, shape }) {
  const array = zeros(`column.${name}`, dtype, [items.length, ...shape]);
  const size = array.values.length / items.length;
  items.forEach((item, k) => {
    const value = item[name];
    if (value === undefined)
      throw new UserError(`the run's table has a column ${name}, which this actor does not make`);
    if (shape.length > 0) array.values.set(value, k * size);
    else array.values[k] = dtype === "int64" ? BigInt(value) : value;
  });
  return array;
}
