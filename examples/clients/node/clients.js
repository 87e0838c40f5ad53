/** The two endpoints of an actor: `replay.insert` and `learner.params` (PROTOCOL.md, sections 5 and 7). */

import { crc32 } from "node:zlib";

const RESEND_MS = 10_000;
const HEARTBEAT_MS = 1_000;
const ASK_AGAIN_MS = 1_000;

/** @typedef {import("./wire.js").Connection} Connection */

/** Inserts each chunk effectively once: keeps it until it is acknowledged, and resends it if necessary. */
export class Producer {
  #connection;
  #credits = 0;
  #nextSeq = 0;
  /** Unacknowledged chunks in the order of their `seq`; the first `#sent` of them have been sent. */
  #chunks = [];
  #sent = 0;
  #progressAt = performance.now();
  /** Items passed to `insert`, and items that the replay server has acknowledged. */
  inserted = 0;
  acknowledged = 0;

  /** @param {(handlers: object) => Connection} connect connects to `replay.insert` */
  constructor(connect) {
    this.#connection = connect({
      welcome: (welcome) => this.#welcomed(welcome),
      message: (message) => this.#take(message),
    });
  }

  /** Whether the environments may step: another chunk could be sent at once. */
  get hasCredit() {
    return this.#chunks.length < this.#credits;
  }

  get isGreeted() {
    return this.#connection.greeted;
  }

  /** @param {import("./wire.js").WireArray[]} arrays of one chunk of `items` items */
  insert(arrays, items) {
    if (this.#chunks.length === 0) this.#progressAt = performance.now();
    this.#chunks.push({ seq: this.#nextSeq++, arrays, items });
    this.inserted += items;
    this.#sendWhatMayGo();
  }

  /** Call often: resends chunks after 10 s without progress. */
  turn() {
    this.#connection.turn();
    if (performance.now() - this.#progressAt >= RESEND_MS) this.#sendAgain();
  }

  close() {
    this.#connection.close();
  }

  #welcomed({ last_seq, credits }) {
    this.#credits = credits;
    this.#forget(last_seq);
    this.#sendAgain();
  }

  #take(message) {
    if (message.type === "insert_ack") {
      this.#credits = message.credits;
      this.#forget(message.seq);
      this.#sendWhatMayGo();
    } else if (message.code === "no_credit") {
      this.#sent = 0; // the error does not name the refused chunk; all of them are sent again after the next ACK
    } else if (message.code === "sequence_gap") {
      this.#sendAgain();
    } else {
      throw new Error(`unexpected from replay.insert: ${JSON.stringify(message)}`);
    }
  }

  /** Drop the chunks that are in the table. */
  #forget(seq) {
    while (this.#chunks.length > 0 && this.#chunks[0].seq <= seq) {
      this.acknowledged += this.#chunks.shift().items;
      this.#sent = Math.max(0, this.#sent - 1);
    }
    this.#progressAt = performance.now();
  }

  #sendAgain() {
    this.#sent = 0;
    this.#progressAt = performance.now();
    this.#sendWhatMayGo();
  }

  #sendWhatMayGo() {
    while (this.#sent < Math.min(this.#chunks.length, this.#credits)) {
      const { seq, arrays } = this.#chunks[this.#sent++];
      this.#connection.send({ type: "insert", seq }, arrays);
    }
  }
}

/**
 * One publication of the learner.
 * @typedef {{version: number, learnerStep: number, tensors: {name: string, dtype: string, shape: number[], bytes: Uint8Array}[]}} Parameters
 */

/** The actor's connection to the learner: heartbeats and the newest parameters. */
export class Learner {
  #connection;
  #askedAt = -Infinity;
  #beatAt = -Infinity;
  /** @type {Parameters | null} */
  parameters = null;
  /** When the learner last answered, in ms of `performance.now()`. */
  heardAt = performance.now();

  /** @param {(handlers: object) => Connection} connect connects to `learner.params` */
  constructor(connect) {
    this.#connection = connect({
      welcome: () => this.#welcomed(),
      message: (message, arrays) => this.#take(message, arrays),
    });
  }

  /** Call often: sends a heartbeat each second, and asks for parameters until there are some. */
  turn(heartbeat) {
    this.#connection.turn();
    const now = performance.now();
    if (now - this.#beatAt >= HEARTBEAT_MS) {
      this.#beatAt = now;
      this.beat(heartbeat());
    }
    if (this.parameters === null) this.ask();
  }

  /** Ask for newer parameters, unless a request of the last second has no answer yet. */
  ask() {
    if (performance.now() - this.#askedAt < ASK_AGAIN_MS) return;
    this.#askedAt = performance.now();
    this.#connection.send({ type: "get_params", newer_than: this.#version });
  }

  /** @param {object} fields of one `heartbeat` but `param_version` */
  beat(fields) {
    this.#connection.send({ type: "heartbeat", param_version: this.#version, ...fields });
  }

  close() {
    this.#connection.close();
  }

  get #version() {
    return this.parameters?.version ?? -1;
  }

  #welcomed() {
    this.#beatAt = this.#askedAt = -Infinity;
    this.heardAt = performance.now();
  }

  #take(message, arrays) {
    this.heardAt = performance.now();
    if (message.type === "error") throw new Error(`unexpected from learner.params: ${JSON.stringify(message)}`);
    if (message.type !== "params") return;
    this.#askedAt = -Infinity;
    const file = arrays.get("parameters").values;
    if (crc32(file) !== message.crc32) this.ask();
    else if (message.param_version > this.#version) this.parameters = parametersOf(message, file);
  }
}

/** @returns {Parameters} */
function parametersOf({ param_version, learner_step }, file) {
  return { version: param_version, learnerStep: learner_step, tensors: readSafetensors(file) };
}

/** The tensors of a safetensors file, as views of its bytes. */
function readSafetensors(file) {
  const headerEnd = 8 + Number(new DataView(file.buffer, file.byteOffset).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(file.subarray(8, headerEnd)));
  delete header.__metadata__;
  return Object.entries(header).map(([name, { dtype, shape, data_offsets }]) => {
    const [begin, end] = data_offsets.map((offset) => headerEnd + offset);
    return { name, dtype, shape, bytes: file.subarray(begin, end) };
  });
}
