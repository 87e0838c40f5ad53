/** Compress images to data blocks of the LZ4 frame format (PROTOCOL.md, section 4). */

const MIN_MATCH = 4;
/** The format wants the last 5 bytes of a block as literals, and no match that begins in its last 12. */
const LAST_LITERALS = 5;
const LAST_MATCH = 12;
const MAX_DISTANCE = 65_535;
const HASH_BITS = 13;

/**
 * One data block: the size of a raw LZ4 block as little-endian uint32, then the raw block.
 * @param {Uint8Array} pixels of one image, less than 4 MiB
 * @returns {Buffer}
 */
export function dataBlock(pixels) {
  const block = rawBlock(pixels);
  const size = Buffer.alloc(4);
  size.writeUInt32LE(block.length);
  return Buffer.concat([size, block]);
}

/** A raw LZ4 block: sequences of literals and a match, each the longest that begins with the last 4 equal bytes. */
function rawBlock(source) {
  const view = new DataView(source.buffer, source.byteOffset, source.byteLength);
  const latest = new Int32Array(1 << HASH_BITS).fill(-1);
  const output = new Output(source.length);
  let at = 0;
  let literalsFrom = 0;
  while (at <= source.length - LAST_MATCH) {
    const four = view.getUint32(at, true);
    const slot = Math.imul(four, 0x9e3779b1) >>> (32 - HASH_BITS);
    const earlier = latest[slot];
    latest[slot] = at;
    if (earlier < 0 || at - earlier > MAX_DISTANCE || view.getUint32(earlier, true) !== four) {
      at += 1;
      continue;
    }
    let length = MIN_MATCH;
    while (at + length < source.length - LAST_LITERALS && source[earlier + length] === source[at + length]) length += 1;
    output.sequence(source.subarray(literalsFrom, at), at - earlier, length);
    at += length;
    literalsFrom = at;
  }
  output.sequence(source.subarray(literalsFrom));
  return output.bytes();
}

/** The sequences of a block. */
class Output {
  #bytes;
  #end = 0;

  /** @param {number} size of the source: incompressible bytes grow by one in 255, and 16 */
  constructor(size) {
    this.#bytes = new Uint8Array(size + Math.floor(size / 255) + 16);
  }

  /** Literals, then a match; the last sequence of a block has none. */
  sequence(literals, distance = 0, length = MIN_MATCH) {
    const more = length - MIN_MATCH;
    this.#put((Math.min(literals.length, 15) << 4) | Math.min(more, 15));
    this.#putRest(literals.length);
    this.#bytes.set(literals, this.#end);
    this.#end += literals.length;
    if (distance === 0) return;
    this.#put(distance & 0xff);
    this.#put(distance >> 8);
    this.#putRest(more);
  }

  bytes() {
    return this.#bytes.subarray(0, this.#end);
  }

  #put(byte) {
    this.#bytes[this.#end++] = byte;
  }

  /** What a length of 15 or more has beyond the 15 of the token: bytes of 255, then one below. */
  #putRest(length) {
    for (let rest = length - 15; rest >= 0; rest -= 255) this.#put(Math.min(rest, 255));
  }
}
