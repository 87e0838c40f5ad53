/** CartPole-v1: balance a pole on a cart (Barto, Sutton and Anderson, 1983), with gymnasium's constants. */

const GRAVITY = 9.8; // m/s²
const CART_MASS = 1.0; // kg
const POLE_MASS = 0.1; // kg
const HALF_POLE_LENGTH = 0.5; // m
const FORCE = 10.0; // N
const STEP_S = 0.02;
const MAX_POSITION = 2.4; // m
const MAX_ANGLE = (12 * 2 * Math.PI) / 360; // rad
const MAX_STEPS = 500;

export class CartPole {
  static observation_shape = [4];
  static num_actions = 2;
  static parts = [];
  #random;
  #state = [0, 0, 0, 0];
  #steps = 0;

  /** @param {() => number} random uniform in [0, 1) */
  constructor(random) {
    this.#random = random;
  }

  /** Begin an episode. @returns {Float32Array} the first observation, [4] */
  reset() {
    this.#state = Array.from({ length: 4 }, () => 0.1 * this.#random() - 0.05);
    this.#steps = 0;
    return Float32Array.from(this.#state);
  }

  /**
   * @param {0 | 1} action push to the left or to the right
   * @returns {{observation: Float32Array, reward: number, terminated: boolean, truncated: boolean}}
   */
  step(action) {
    this.#state = moved(this.#state, action === 1 ? FORCE : -FORCE);
    this.#steps += 1;
    const [position, , angle] = this.#state;
    const terminated = Math.abs(position) > MAX_POSITION || Math.abs(angle) > MAX_ANGLE;
    const truncated = !terminated && this.#steps >= MAX_STEPS;
    return { observation: Float32Array.from(this.#state), reward: 1.0, terminated, truncated };
  }
}

/** The state one step later, by Euler's method: position and speed of the cart, angle and angular speed of the pole. */
function moved([position, speed, angle, angularSpeed], force) {
  const mass = CART_MASS + POLE_MASS;
  const poleMoment = POLE_MASS * HALF_POLE_LENGTH;
  const [sin, cos] = [Math.sin(angle), Math.cos(angle)];
  const push = (force + poleMoment * angularSpeed ** 2 * sin) / mass;
  const angularAcceleration =
    (GRAVITY * sin - cos * push) / (HALF_POLE_LENGTH * (4 / 3 - (POLE_MASS * cos ** 2) / mass));
  const acceleration = push - (poleMoment * angularAcceleration * cos) / mass;
  return [
    position + STEP_S * speed,
    speed + STEP_S * acceleration,
    angle + STEP_S * angularSpeed,
    angularSpeed + STEP_S * angularAcceleration,
  ];
}
