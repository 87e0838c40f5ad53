/** The wire of PROTOCOL.md, sections 1 to 3: messages as frames, and a connection that sends its hello. */

import os from "node:os";
import { decode as unpack, encode as pack } from "@msgpack/msgpack";
import { Dealer } from "zeromq";

export const PROTOCOL_VERSION = 6;

/** An error that the user has to fix. The message is one line; `exitCode` is apex's code for it. */
export class UserError extends Error {
  exitCode = 78;
}

const HELLO_AGAIN_MS = 2_000;
const ARRAYS = {
  uint8: Uint8Array,
  int32: Int32Array,
  int64: BigInt64Array,
  float32: Float32Array,
  float64: Float64Array,
};
/** Error codes after which trying again cannot help. */
const FINAL_ERRORS = new Set([
  "malformed",
  "bad_request",
  "protocol_version",
  "wrong_run",
  "wrong_schema",
  "not_authorized",
  "not_permitted",
  "superseded",
  "future_epoch",
]);

/**
 * One buffer of a message: a C-contiguous array.
 * @typedef {{name: string, shape: number[], values: Uint8Array | Int32Array | BigInt64Array | Float32Array | Float64Array}} WireArray
 */

/**
 * The frames of a message.
 * @param {{type: string} & Record<string, unknown>} message the fields of the header
 * @param {WireArray[]} arrays in any order
 * @returns {Uint8Array[]} header, then one frame for each array
 */
export function encode(message, arrays = []) {
  const header = { protocol: PROTOCOL_VERSION };
  for (const [key, value] of Object.entries(message)) header[key] = integer(value);
  header.buffers = arrays.map(({ name, shape, values }) => [name, dtypeOf(values), shape]);
  const frames = arrays.map(({ values }) => new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
  return [pack(header, { useBigInt64: true }), ...frames];
}

/**
 * Decode the frames of a message.
 * @param {Uint8Array[]} frames
 * @returns {{message: Record<string, any>, arrays: Map<string, WireArray>}}
 * @throws {UserError} the other side speaks another version of the protocol
 */
export function decode(frames) {
  const { protocol, buffers = [], ...fields } = unpack(frames[0], { useBigInt64: true });
  if (Number(protocol) !== PROTOCOL_VERSION)
    throw new UserError(
      `the server speaks protocol ${protocol}, this actor ${PROTOCOL_VERSION}: use one version of apex`,
    );
  const arrays = new Map();
  buffers.forEach(([name, dtype, shape], k) => {
    // A copy is aligned for every dtype; a received frame may not be.
    const bytes = new Uint8Array(frames[k + 1]);
    arrays.set(name, { name, shape: shape.map(Number), values: new ARRAYS[dtype](bytes.buffer) });
  });
  const message = Object.fromEntries(Object.entries(fields).map(([key, value]) => [key, plain(value)]));
  return { message, arrays };
}

/** An integer beyond 32 bits as a BigInt: the packer would encode a Number as a float, which int fields refuse. */
function integer(value) {
  return Number.isSafeInteger(value) && Math.abs(value) > 0xffffffff ? BigInt(value) : value;
}

/** A received 64-bit integer as a Number where that is exact. */
function plain(value) {
  return typeof value === "bigint" && Number.isSafeInteger(Number(value)) ? Number(value) : value;
}

/** An array of zeros to send. @returns {WireArray} */
export function zeros(name, dtype, shape) {
  return { name, shape, values: new ARRAYS[dtype](shape.reduce((size, length) => size * length, 1)) };
}

/** The wire's dtype of a typed array. */
function dtypeOf(values) {
  return Object.keys(ARRAYS).find((dtype) => values instanceof ARRAYS[dtype]);
}

/** One endpoint of a suite. Sends its hello whenever the server may not know this client. */
export class Connection {
  #socket;
  #hello;
  #handlers;
  #helloAt = -Infinity;
  /** Whether the server has answered the hello on the current connection. */
  greeted = false;

  /**
   * @param {import("./run.js").Endpoint} endpoint
   * @param {object} hello the fields of `hello`
   * @param {{welcome(message: object): void, message(message: object, arrays: Map<string, WireArray>): void, failure(error: Error): void}} handlers
   */
  constructor({ address, keys }, hello, handlers) {
    if (os.endianness() !== "LE") throw new UserError("this actor needs a little-endian machine, as the wire is");
    this.#hello = { type: "hello", ...hello };
    this.#handlers = handlers;
    this.#socket = new Dealer({ ...socketOptions(), ...curveOptions(keys) });
    this.#watch(address);
    this.#socket.connect(address);
    this.#receive().catch((error) => handlers.failure(error));
  }

  /**
   * Send a message, or drop it if the server does not know this client or cannot take it now.
   * The caller sends important messages again: after a welcome, and when no answer comes.
   */
  send(message, arrays = []) {
    if (this.greeted) this.#write(encode(message, arrays));
  }

  /** Call often: repeats a hello without an answer. */
  turn() {
    const waits = this.#helloAt > -Infinity && !this.greeted;
    if (waits && performance.now() - this.#helloAt >= HELLO_AGAIN_MS) this.#greet();
  }

  /** Sent messages still go out for a second (the linger of the socket). */
  close() {
    this.#socket.close();
  }

  /** Each handshake is a new connection, possibly to a new server. */
  #watch(address) {
    this.#socket.events.on("handshake", () => this.#greet());
    this.#socket.events.on("disconnect", () => {
      this.greeted = false;
      this.#helloAt = -Infinity;
    });
    this.#socket.events.on("handshake:error:auth", () =>
      this.#handlers.failure(new UserError(`${address} does not let this user or key in`)),
    );
  }

  #greet() {
    this.greeted = false;
    this.#helloAt = performance.now();
    this.#write(encode(this.#hello));
  }

  #write(frames) {
    this.#socket.send(frames).catch((error) => {
      if (error.code !== "EAGAIN") this.#handlers.failure(error);
    });
  }

  async #receive() {
    for await (const frames of this.#socket) {
      const { message, arrays } = decode(frames);
      if (message.type === "error") this.#takeError(message);
      else if (message.type === "welcome") {
        this.greeted = true;
        this.#handlers.welcome(message);
      } else this.#handlers.message(message, arrays);
    }
  }

  #takeError(error) {
    if (FINAL_ERRORS.has(error.code)) throw new UserError(`${error.code}: ${error.detail}`);
    if (error.code !== "hello_required") this.#handlers.message(error, new Map());
    else if (this.greeted) this.#greet();
  }
}

/** The options of PROTOCOL.md. A send that cannot be queued at once fails with EAGAIN. */
function socketOptions() {
  return {
    sendHighWaterMark: 64,
    receiveHighWaterMark: 64,
    sendTimeout: 0,
    heartbeatInterval: 2_000,
    heartbeatTimeout: 10_000,
    handshakeInterval: 5_000,
    reconnectInterval: 50,
    reconnectMaxInterval: 1_000,
    linger: 1_000,
    immediate: true,
  };
}

function curveOptions(keys) {
  if (keys === null) return {};
  return { curveServerKey: keys.serverKey, curvePublicKey: keys.publicKey, curveSecretKey: keys.secretKey };
}
