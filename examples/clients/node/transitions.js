/** N-step transitions from environment steps (PROTOCOL.md, "What `apex_dqn` puts into them"). */

import { dataBlock } from "./lz4.js";
import { UserError, zeros } from "./wire.js";

/**
 * Priority of a new item. The protocol defines it by the policy's values, which random actions do not have.
 * The learner replaces it when it samples the item.
 */
const PRIORITY = 1.0;

/**
 * An observation: an array, or its parts by name: arrays, or numbers where a part's shape is [].
 * @typedef {Float32Array | Uint8Array | Record<string, Float32Array | Uint8Array | Int32Array | number>} Observation
 *
 * An item of the run's table: its columns, where the parts of an observation are columns of their own, and its frames.
 * @typedef {{action: number, n_step_return: number, discount: number, learner_step: number,
 *   observation: Observation, next_observation: Observation, frames: Buffer[], padding: number}} Transition
 *
 * @typedef {{columns: {name: string, dtype: string, shape: number[]}[],
 *   frames: {shape: number[], max_frames: number, images?: {name: string, shape: number[]}[]} | null}} Schema
 */

/** Makes the n-step transitions of one environment. */
export class NStepTransitions {
  #schema;
  #nStep;
  #discount;
  #clipRewards;
  #stack;
  /** The steps whose transitions are not complete. */
  #window = [];
  #observation;
  /** The episode's newest compressed frames, the last of them that of `#observation`; empty without images. */
  #frames = [];

  /**
   * @param {Schema} schema of the run
   * @param {{nStep: number, discount: number, clipRewards: boolean, frameStack: number}} settings
   */
  constructor(schema, { nStep, discount, clipRewards, frameStack }) {
    this.#schema = schema;
    this.#nStep = nStep;
    this.#discount = discount;
    this.#clipRewards = clipRewards;
    this.#stack = frameStack;
  }

  /** Begin an episode. @param {Observation} observation the first one */
  begin(observation) {
    this.#frames = [];
    this.#see(observation);
  }

  /**
   * Add one step. Returns the transitions that it completes.
   * @param {{action: number, learner_step: number}} decision at the last observation
   * @param {{observation: Observation, reward: number, terminated: boolean, truncated: boolean}} after the result of the step
   * @returns {Transition[]} oldest first; at an episode's end also those of fewer than n rewards
   */
  add(decision, after) {
    const reward = this.#clipRewards ? Math.max(-1, Math.min(1, after.reward)) : after.reward;
    this.#window.push({ ...decision, observation: this.#observation, reward });
    this.#see(after.observation);
    const items = [];
    const ended = after.terminated || after.truncated;
    while (this.#window.length === this.#nStep || (ended && this.#window.length > 0)) items.push(this.#oldest(after));
    return items;
  }

  #see(observation) {
    this.#observation = observation;
    if (this.#schema.frames === null) return;
    this.#frames.push(frameOf(observation, this.#schema.frames));
    if (this.#frames.length > this.#stack + this.#nStep) this.#frames.shift();
  }

  /** The transition from the window's first step over all its rewards. Removes that step from the window. */
  #oldest({ terminated }) {
    const rewards = this.#window.map(({ reward }) => reward);
    const { observation, action, learner_step } = this.#window.shift();
    const frameCount = this.#schema.frames === null ? 0 : this.#stack + rewards.length;
    const frames = this.#frames.slice(Math.max(0, this.#frames.length - frameCount));
    return {
      action,
      n_step_return: rewards.reduceRight((later, reward) => reward + this.#discount * later, 0),
      discount: terminated ? 0 : this.#discount ** rewards.length,
      learner_step,
      observation,
      next_observation: this.#observation,
      frames,
      padding: frameCount - frames.length,
    };
  }
}

/** The compressed frame of an observation: a block for each image, in the schema's order. */
function frameOf(observation, { shape, images = [] }) {
  if (images.length === 0) return imageBlock("the observation", observation, shape);
  return Buffer.concat(images.map(({ name, shape }) => imageBlock(name, observation[name], shape)));
}

/** Replay cannot see the size of a compressed image. */
function imageBlock(name, pixels, shape) {
  const size = product(shape);
  if (!(pixels instanceof Uint8Array) || pixels.length !== size)
    throw new UserError(`the run's table has images of ${size} bytes; ${name} is not a Uint8Array of that length`);
  return dataBlock(pixels);
}

const product = (shape) => shape.reduce((size, length) => size * length, 1);

/**
 * The buffers of an insert of M items.
 * @param {Transition[]} items consecutive ones of one environment
 * @param {Schema} schema of the run
 * @returns {import("./wire.js").WireArray[]} `priorities` [M], `column.NAME` [M, ...shape] and `frames.NAME`
 */
export function chunkOf(items, { columns, frames }) {
  const priorities = zeros("priorities", "float64", [items.length]);
  priorities.values.fill(PRIORITY);
  return [priorities, ...columns.map((column) => columnOf(items, column)), ...(frames ? framesOf(items) : [])];
}

function columnOf(items, { name, dtype, shape }) {
  const array = zeros(`column.${name}`, dtype, [items.length, ...shape]);
  const size = product(shape);
  items.forEach((item, k) => {
    const value = valueOf(item, name);
    if (value === undefined || (shape.length > 0 && value.length !== size))
      throw new UserError(`the run's table has a column ${name} of shape [${shape}], which this actor does not make`);
    if (shape.length > 0) array.values.set(value, k * size);
    else array.values[k] = dtype === "int64" ? BigInt(value) : value;
  });
  return array;
}

/** The value of a column. `observation.robot.arm` is the part `robot.arm` of the observation. */
function valueOf(item, name) {
  const dot = name.indexOf(".");
  return dot < 0 ? item[name] : item[name.slice(0, dot)]?.[name.slice(dot + 1)];
}

/** The frames of the items, each once, and the range of each item. */
function framesOf(items) {
  const places = new Map();
  for (const { frames } of items)
    for (const frame of frames) if (!places.has(frame)) places.set(frame, places.size);
  const kept = [...places.keys()];
  const blob = Buffer.concat(kept);
  return [
    int32("frames.first_frame", items.map(({ frames }) => places.get(frames[0]))),
    int32("frames.frame_count", items.map(({ frames }) => frames.length)),
    int32("frames.pad_count", items.map(({ padding }) => padding)),
    int32("frames.frame_lengths", kept.map((frame) => frame.length)),
    { name: "frames.blob", shape: [blob.length], values: blob },
  ];
}

const int32 = (name, numbers) => ({ name, shape: [numbers.length], values: Int32Array.from(numbers) });
