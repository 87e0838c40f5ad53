/** Read what an actor needs from a run's directory: addresses, keys, schema and settings. */

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import path from "node:path";
import { parse } from "smol-toml";
import { UserError } from "./wire.js";

/**
 * Address of a server and the CURVE keys (Z85) for it, or null.
 * @typedef {{address: string, keys: {serverKey: string, publicKey: string, secretKey: string} | null}} Endpoint
 *
 * @typedef {object} Run
 * @property {string} id `run_id`
 * @property {string} schemaHash 16 hexadecimal digits
 * @property {{insert: Endpoint, params: Endpoint}} endpoints
 * @property {import("./transitions.js").Schema} schema of the run's table
 * @property {{env_id: string, observation_shape: number[], num_actions: number, frame_stack: number, parts: Part[]}} env
 * @property {{nStep: number, discount: number, clipRewards: boolean, frameStack: number, numEnvs: number, chunkLength: number, parameterPeriod: number, parameterPeriodS: number, learnerPatienceS: number}} settings
 *
 * An array of an observation that has several.
 * @typedef {{name: string, kind: "image" | "vector" | "choices" | "mask", shape: number[], dtype: string, choices: number[]}} Part
 */

/**
 * Read a run's directory.
 * @param {string} folder
 * @returns {Run}
 * @throws {UserError} a file is missing or cannot be read
 */
export function readRun(folder) {
  const { replay, learner, keys: keysFolder } = readToml(path.join(folder, "endpoints.toml"));
  const config = readToml(path.join(folder, "config.toml"));
  const { run_id, env, schema } = readWith(JSON.parse, path.join(folder, "schema.json"));
  const keys = keysFolder ? readKeys(path.resolve(folder, keysFolder)) : null;
  const endpoint = (address) => ({ address, keys: address.startsWith("tcp://") ? keys : null });
  return {
    id: run_id,
    schemaHash: schemaHash(schema),
    endpoints: { insert: endpoint(replay.insert), params: endpoint(learner.params) },
    schema,
    env: { parts: [], ...env },
    settings: { ...settingsOf(config), frameStack: env.frame_stack },
  };
}

/** The first 16 digits of the SHA-256 of the schema's compact JSON, keys in PROTOCOL.md's order. */
export function schemaHash({ columns, frames }) {
  const ordered = { columns: columns.map(orderedColumn), frames: frames && orderedFrames(frames) };
  return createHash("sha256").update(JSON.stringify(ordered)).digest("hex").slice(0, 16);
}

const orderedColumn = ({ name, dtype, shape }) => ({ name, dtype, shape });

/** `images` is in the text only where there are some. */
function orderedFrames({ shape, max_frames, images = [] }) {
  return { shape, max_frames, ...(images.length > 0 && { images: images.map(orderedColumn) }) };
}

function settingsOf({ algorithm, env, actor }) {
  if (algorithm.name !== "apex_dqn" || actor.inference !== "local")
    throw new UserError(
      `this actor makes items of apex_dqn with local inference; the run has ${algorithm.name} with ${actor.inference} inference`,
    );
  return {
    nStep: algorithm.n_step,
    discount: algorithm.discount,
    clipRewards: env.clip_rewards,
    numEnvs: actor.num_envs,
    chunkLength: actor.chunk_length,
    parameterPeriod: actor.parameter_period,
    parameterPeriodS: actor.parameter_period_s,
    learnerPatienceS: actor.learner_patience_s,
  };
}

/** The server's public key and the actor's pair. */
function readKeys(folder) {
  const server = readToml(path.join(folder, "server.public"));
  const own = readToml(path.join(folder, "actor.secret"));
  return { serverKey: server.public, publicKey: own.public, secretKey: own.secret };
}

const readToml = (file) => readWith(parse, file);

function readWith(parseText, file) {
  try {
    return parseText(readFileSync(file, "utf8"));
  } catch (error) {
    const reason = error.code === "ENOENT" ? "there is no such file" : error.message.split("\n")[0];
    throw new UserError(`${file}: ${reason}; --run names the directory of a run`);
  }
}
