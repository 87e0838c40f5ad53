/**
 * Corners: walk on a grid to the corner that `goal` names. An observation has two images, a vector, a choice and a
 * mask of the moves that stay on the grid.
 */

const SIZE = 6;
const NEAR = 3;
const MAX_STEPS = 30;
const STEP_REWARD = -0.1;
const GOAL_REWARD = 1.0;
const [FREE, GOAL, WALKER] = [64, 128, 255]; // brightness of a cell; 0 is beyond the grid
const MOVES = [[-1, 0], [1, 0], [0, -1], [0, 1]]; // up, down, left, right
const CORNERS = [[0, 0], [0, SIZE - 1], [SIZE - 1, 0], [SIZE - 1, SIZE - 1]];

/**
 * @typedef {{map: Uint8Array, near: Uint8Array, position: Float32Array, goal: number, action_mask: Uint8Array}} Observation
 */

export class Corners {
  static observation_shape = [];
  static num_actions = MOVES.length;
  static parts = [
    { name: "map", kind: "image", shape: [SIZE, SIZE], dtype: "uint8", choices: [] },
    { name: "near", kind: "image", shape: [NEAR, NEAR], dtype: "uint8", choices: [] },
    { name: "position", kind: "vector", shape: [2], dtype: "float32", choices: [] },
    { name: "goal", kind: "choices", shape: [], dtype: "int32", choices: [CORNERS.length] },
    { name: "action_mask", kind: "mask", shape: [MOVES.length], dtype: "uint8", choices: [] },
  ];
  #random;
  #goal = 0;
  #cell = [0, 0];
  #steps = 0;

  /** @param {() => number} random uniform in [0, 1) */
  constructor(random) {
    this.#random = random;
  }

  /** Begin an episode in any cell but the goal. @returns {Observation} the first observation */
  reset() {
    this.#goal = this.#draw(CORNERS.length);
    do this.#cell = [this.#draw(SIZE), this.#draw(SIZE)];
    while (this.#isGoal(this.#cell));
    this.#steps = 0;
    return this.#seen();
  }

  /**
   * @param {number} action one that the last observation's mask allows
   * @returns {{observation: Observation, reward: number, terminated: boolean, truncated: boolean}}
   */
  step(action) {
    this.#cell = moved(this.#cell, action);
    this.#steps += 1;
    const terminated = this.#isGoal(this.#cell);
    const truncated = !terminated && this.#steps >= MAX_STEPS;
    return { observation: this.#seen(), reward: terminated ? GOAL_REWARD : STEP_REWARD, terminated, truncated };
  }

  #draw(count) {
    return Math.floor(count * this.#random());
  }

  #isGoal([row, column]) {
    const [goalRow, goalColumn] = CORNERS[this.#goal];
    return row === goalRow && column === goalColumn;
  }

  #seen() {
    const [row, column] = this.#cell;
    const cell = (r, c) => (!isOnGrid([r, c]) ? 0 : this.#isGoal([r, c]) ? GOAL : FREE);
    const map = picture(SIZE, cell);
    map[row * SIZE + column] = WALKER;
    return {
      map,
      near: picture(NEAR, (r, c) => cell(row + r - 1, column + c - 1)),
      position: Float32Array.of(row / (SIZE - 1), column / (SIZE - 1)),
      goal: this.#goal,
      action_mask: Uint8Array.from(MOVES, (_, action) => Number(isOnGrid(moved(this.#cell, action)))),
    };
  }
}

function moved([row, column], action) {
  const [down, right] = MOVES[action];
  return [row + down, column + right];
}

const isOnGrid = (cell) => cell.every((place) => place >= 0 && place < SIZE);

/** A square image, row-major. @param {(row: number, column: number) => number} brightness */
function picture(size, brightness) {
  return Uint8Array.from({ length: size * size }, (_, k) => brightness(Math.floor(k / size), k % size));
}
