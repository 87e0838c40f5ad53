/** An actor for apex with random actions: node actor.js --run DIR --index N [--steps N] */

import { setImmediate as nextTurn, setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { CartPole } from "./cartpole.js";
import { Learner, Producer } from "./clients.js";
import { Corners } from "./corners.js";
import { readRun } from "./run.js";
import { NStepTransitions, chunkOf } from "./transitions.js";
import { Connection, UserError } from "./wire.js";

const USAGE = "usage: node actor.js --run DIR --index N [--steps N]";
const ENVIRONMENTS = [CartPole, Corners];
const WAIT_MS = 5;
const DRAIN_MS = 3_000;
const RECENT_EPISODES = 20;
const RATE_BEATS = 10;

/** One environment and its transitions. */
class Lane {
  #env;
  #numActions;
  #transitions;
  #schema;
  #chunkLength;
  #observation;
  #items = [];
  #return = 0;

  constructor(Environment, { schema, settings }) {
    this.#env = new Environment(Math.random);
    this.#numActions = Environment.num_actions;
    this.#transitions = new NStepTransitions(schema, settings);
    this.#schema = schema;
    this.#chunkLength = settings.chunkLength;
    this.#begin();
  }

  /** Take one random action. @returns {number | null} the return of the episode, if it ended */
  step(learnerStep) {
    const allowed = allowedActions(this.#observation, this.#numActions);
    const action = allowed[Math.floor(Math.random() * allowed.length)];
    const after = this.#env.step(action);
    this.#items.push(...this.#transitions.add({ action, learner_step: learnerStep }, after));
    this.#return += after.reward;
    this.#observation = after.observation;
    return after.terminated || after.truncated ? this.#begin() : null;
  }

  /** Insert full chunks, or with `all` every complete item. */
  insert(producer, all = false) {
    while (this.#items.length >= this.#chunkLength || (all && this.#items.length > 0)) {
      const items = this.#items.splice(0, this.#chunkLength);
      producer.insert(chunkOf(items, this.#schema), items.length);
    }
  }

  #begin() {
    const whole = this.#return;
    this.#return = 0;
    this.#observation = this.#env.reset();
    this.#transitions.begin(this.#observation);
    return whole;
  }
}

/** The actions that an observation's mask allows; without a mask all of them. */
function allowedActions({ action_mask }, numActions) {
  return Array.from({ length: numActions }, (_, action) => action).filter((action) => action_mask?.[action] !== 0);
}

/** Steps environments while there are parameters and credit, and sends the learner a heartbeat each second. */
class Actor {
  #run;
  #name;
  #lanes;
  #producer;
  #learner;
  #failure = null;
  #ending = false;
  #envSteps = 0;
  #askedAtStep = 0;
  #askedAt = -Infinity;
  #episodes = 0;
  #recentReturns = [];
  #beats = [];
  #printed = -1;

  constructor(run, index) {
    this.#run = run;
    this.#name = `actor_${String(index).padStart(3, "0")}`;
    this.#lanes = Array.from({ length: run.settings.numEnvs }, () => new Lane(environmentOf(run.env), run));
    const hello = {
      role: "actor",
      name: this.#name,
      epoch: BigInt(Date.now()) * 1_000_000n,
      run_id: run.id,
      schema_hash: run.schemaHash,
      pid: process.pid,
    };
    const failure = (error) => (this.#failure ??= error);
    const connect = (endpoint) => (handlers) => new Connection(endpoint, hello, { ...handlers, failure });
    this.#learner = new Learner(connect(run.endpoints.params));
    this.#producer = new Producer(connect(run.endpoints.insert));
  }

  /** Play until `end` is called or `limit` environment steps are done, then drain. */
  async play(limit) {
    try {
      while (!this.#ending && this.#envSteps < limit) await this.#turn();
      await this.#drain();
    } finally {
      this.#learner.close();
      this.#producer.close();
    }
  }

  end() {
    this.#ending = true;
  }

  /** One pass of the work loop. */
  async #turn() {
    this.#serve();
    if (this.#phase() !== "stepping") return sleep(WAIT_MS);
    this.#step();
    return nextTurn();
  }

  #phase() {
    if (this.#learner.parameters === null || !this.#producer.isGreeted) return "waiting_for_peer";
    return this.#producer.hasCredit ? "stepping" : "waiting_for_credit";
  }

  /** Everything besides stepping: heartbeats, requests, resends. */
  #serve() {
    if (this.#failure) throw this.#failure;
    const { learnerPatienceS } = this.#run.settings;
    if (performance.now() - this.#learner.heardAt > 1000 * learnerPatienceS)
      throw new SilenceError(`the learner did not answer for ${learnerPatienceS} s (actor.learner_patience_s)`);
    this.#producer.turn();
    this.#learner.turn(() => this.#heartbeat(this.#phase()));
    if (this.#learner.parameters && this.#learner.parameters.version !== this.#printed) this.#printParameters();
  }

  #step() {
    for (const lane of this.#lanes) {
      const whole = lane.step(this.#learner.parameters.learnerStep);
      if (whole !== null) this.#noteEpisode(whole);
      lane.insert(this.#producer);
    }
    this.#envSteps += this.#lanes.length;
    if (this.#refreshIsDue()) {
      this.#askedAtStep = this.#envSteps;
      this.#askedAt = performance.now();
      this.#learner.ask();
    }
  }

  /** Whether to ask for newer parameters: by environment steps, or by time without such a period. */
  #refreshIsDue() {
    const { parameterPeriod, parameterPeriodS } = this.#run.settings;
    if (parameterPeriod > 0) return this.#envSteps - this.#askedAtStep >= parameterPeriod;
    return performance.now() - this.#askedAt >= 1000 * parameterPeriodS;
  }

  #noteEpisode(whole) {
    this.#episodes += 1;
    this.#recentReturns.push(whole);
    if (this.#recentReturns.length > RECENT_EPISODES) this.#recentReturns.shift();
  }

  /** Insert the complete items, wait briefly for acknowledgements, and send a last heartbeat. */
  async #drain() {
    for (const lane of this.#lanes) lane.insert(this.#producer, true);
    const deadline = performance.now() + DRAIN_MS;
    while (this.#producer.acknowledged < this.#producer.inserted && performance.now() < deadline) {
      this.#serve();
      await sleep(WAIT_MS);
    }
    this.#learner.beat(this.#heartbeat("leaving"));
    const { inserted, acknowledged } = this.#producer;
    this.#say(`${this.#envSteps} env steps, ${this.#episodes} episodes, mean return ${this.#meanReturn()}`);
    this.#say(`${inserted} items inserted, ${acknowledged} acknowledged`);
  }

  #heartbeat(phase) {
    this.#beats.push([performance.now(), this.#envSteps]);
    if (this.#beats.length > RATE_BEATS) this.#beats.shift();
    const [[then, before], [now, after]] = [this.#beats[0], this.#beats.at(-1)];
    return {
      phase,
      env_steps: this.#envSteps,
      env_steps_per_s: now > then ? (1000 * (after - before)) / (now - then) : 0,
      episodes: this.#episodes,
      mean_return: this.#meanReturn(),
    };
  }

  #meanReturn() {
    const recent = this.#recentReturns;
    return recent.length > 0 ? recent.reduce((sum, whole) => sum + whole, 0) / recent.length : null;
  }

  /** Print the first parameters with their tensors, later ones with their version only. */
  #printParameters() {
    const { version, learnerStep, tensors } = this.#learner.parameters;
    this.#say(`parameters ${version} of learner step ${learnerStep}`);
    if (this.#printed < 0) for (const { name, dtype, shape } of tensors) console.log(`  ${name} ${dtype} [${shape}]`);
    this.#printed = version;
  }

  #say(text) {
    console.log(`${this.#name}: ${text}`);
  }
}

/** The learner does not answer any more. */
class SilenceError extends UserError {
  exitCode = 75;
}

class UsageError extends UserError {
  exitCode = 2;
}

/** @returns {{run: string, index: number, steps: number}} @throws {UsageError} */
function parseArguments() {
  const { run, index, steps = "Infinity" } = optionsGiven();
  if (run === undefined || !/^\d+$/.test(index ?? "") || !/^(\d+|Infinity)$/.test(steps)) throw new UsageError(USAGE);
  return { run, index: Number(index), steps: Number(steps) };
}

function optionsGiven() {
  const text = { type: "string" };
  try {
    return parseArgs({ options: { run: text, index: text, steps: text } }).values;
  } catch (error) {
    throw new UsageError(`${USAGE}: ${error.message.split("\n")[0]}`);
  }
}

/** The environment with the run's observations and actions. @throws {UserError} there is none */
function environmentOf(env) {
  const found = ENVIRONMENTS.find((Environment) => shapeOf(Environment) === shapeOf(env));
  if (found) return found;
  const known = ENVIRONMENTS.map((Environment) => `${Environment.name} (${describe(Environment)})`);
  throw new UserError(`this actor plays ${known.join(", ")}; the run has ${env.env_id} (${describe(env)})`);
}

/** Text that is equal for equal observations and actions. */
function shapeOf({ observation_shape, num_actions, parts }) {
  const lines = parts.map(({ name, kind, shape, dtype, choices }) => JSON.stringify([name, kind, shape, dtype, choices]));
  return JSON.stringify([observation_shape, num_actions, ...lines.sort()]);
}

function describe({ observation_shape, num_actions, parts }) {
  const named = parts.map(({ name, kind, shape, choices }) =>
    [`${name}: ${kind} [${shape}]`, ...(choices.length > 0 ? [`of ${choices}`] : [])].join(" "),
  );
  return `observations ${parts.length > 0 ? named.join(", ") : `[${observation_shape}]`}, ${num_actions} actions`;
}

async function main() {
  const options = parseArguments();
  const run = readRun(options.run);
  const actor = new Actor(run, options.index);
  process.on("SIGTERM", () => actor.end());
  process.on("SIGINT", () => actor.end());
  await actor.play(options.steps);
}

try {
  await main();
} catch (error) {
  console.error(error instanceof UserError ? `error: ${error.message}` : error);
  process.exitCode = error.exitCode ?? 1;
}
