/**
 * From the pixels of a picture to the input of the model, as the Python side does it: Pillow's and torchvision's
 * antialiased resampling, with rounding to 8 bits after each direction. Nothing here needs a browser.
 */

/**
 * A picture in memory.
 * @typedef {object} Pixels
 * @property {number} width
 * @property {number} height
 * @property {Uint8ClampedArray} data RGBA, row by row; the last channel is not used
 */

/**
 * What the saved processor does: `PixelSteps` of classifier/models/processor.py.
 * @typedef {object} PixelSteps
 * @property {[number, number] | null} size (width, height) to which it resizes
 * @property {number | null} shortest_edge pixels to which it resizes the shorter side
 * @property {keyof typeof FILTERS} resample
 * @property {[number, number] | null} crop (width, height) of the middle that it keeps
 * @property {boolean} even_crop whether a half of a pixel beside the middle is rounded to the even number, and not down
 * @property {number} scale by which it multiplies values in 0 ... 255
 * @property {number[]} mean of each channel, which it then subtracts
 * @property {number[]} std of each channel, by which it then divides
 */

/** @param {number} x */
const sinc = x => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));

/** The kernels of Pillow, and how many input pixels they reach to each side. */
const FILTERS = {
  bilinear: { reach: 1, weight: /** @param {number} x */ x => Math.max(0, 1 - Math.abs(x)) },
  bicubic: {
    reach: 2, // Keys' kernel with a = -0.5
    weight: /** @param {number} x */ x => {
      const d = Math.abs(x);
      if (d < 1) return (1.5 * d - 2.5) * d * d + 1;
      return d < 2 ? ((-0.5 * d + 2.5) * d - 4) * d + 2 : 0;
    },
  },
  lanczos: { reach: 3, weight: /** @param {number} x */ x => (Math.abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0) },
};

/**
 * For each of `size` samples of a row of `n` pixels: the first pixel that it depends on, and the weights from there on.
 * @param {number} n
 * @param {number} size
 * @param {keyof typeof FILTERS} filter
 */
export function sampling(n, size, filter) {
  const { reach, weight } = FILTERS[filter];
  const step = n / size;
  const stretch = Math.max(1, step); // the kernel is wider where the picture shrinks: antialiasing
  return Array.from({ length: size }, (_, i) => {
    const centre = (i + 0.5) * step;
    const first = Math.max(0, Math.floor(centre - reach * stretch + 0.5));
    const last = Math.min(n, Math.floor(centre + reach * stretch + 0.5));
    const weights = Float64Array.from({ length: last - first }, (_, k) => weight((first + k - centre + 0.5) / stretch));
    const sum = weights.reduce((a, b) => a + b, 0);
    return { first, weights: weights.map(w => w / sum) };
  });
}

/**
 * Resizes a picture; the result is rounded and clipped after the rows, and again after the columns.
 * @param {Pixels} pixels
 * @param {number} width
 * @param {number} height
 * @param {keyof typeof FILTERS} filter
 * @returns {Pixels}
 */
export function resize(pixels, width, height, filter) {
  const wide = width === pixels.width ? pixels : { width, height: pixels.height, data: rows(pixels, width, filter) };
  return height === pixels.height ? wide : { width, height, data: columns(wide, height, filter) };
}

/** @param {number} value as Pillow rounds it; an array of 8 bits would round a half to the even number */
const rounded = value => Math.floor(value + 0.5);

/** @type {(pixels: Pixels, width: number, filter: keyof typeof FILTERS) => Uint8ClampedArray} */
function rows(pixels, width, filter) {
  const samples = sampling(pixels.width, width, filter);
  const made = new Uint8ClampedArray(4 * width * pixels.height); // clips
  for (let y = 0; y < pixels.height; y++) {
    for (let x = 0; x < width; x++) {
      const { first, weights } = samples[x];
      let from = 4 * (y * pixels.width + first);
      let [r, g, b] = [0, 0, 0];
      for (let k = 0; k < weights.length; k++, from += 4) {
        r += weights[k] * pixels.data[from];
        g += weights[k] * pixels.data[from + 1];
        b += weights[k] * pixels.data[from + 2];
      }
      made.set([rounded(r), rounded(g), rounded(b)], 4 * (y * width + x));
    }
  }
  return made;
}

/** @type {(pixels: Pixels, height: number, filter: keyof typeof FILTERS) => Uint8ClampedArray} */
function columns(pixels, height, filter) {
  const samples = sampling(pixels.height, height, filter);
  const length = 4 * pixels.width;
  const made = new Uint8ClampedArray(length * height);
  const sums = new Float64Array(length);
  for (let y = 0; y < height; y++) {
    const { first, weights } = samples[y];
    sums.fill(0);
    for (let k = 0; k < weights.length; k++) {
      const from = (first + k) * length;
      for (let i = 0; i < length; i++) sums[i] += weights[k] * pixels.data[from + i];
    }
    made.set(sums.map(rounded), y * length);
  }
  return made;
}

const MAX_ASPECT = 20; // a longer strip is squashed to this

/**
 * The size of a picture whose shorter side is reduced to `reduceTo` pixels; unchanged if it is smaller, or for null.
 * @param {number} width
 * @param {number} height
 * @param {number | null} reduceTo
 */
export function reducedSize(width, height, reduceTo) {
  const scale = reduceTo ? Math.min(1, reduceTo / Math.min(width, height)) : 1;
  return scale === 1
    ? { width, height }
    : limited(Math.max(1, Math.round(scale * width)), Math.max(1, Math.round(scale * height)));
}

/** @type {(width: number, height: number) => {width: number, height: number}} */
const limited = (width, height) => ({
  width: Math.min(width, MAX_ASPECT * height),
  height: Math.min(height, MAX_ASPECT * width),
});

/**
 * The input of the model for one picture, (3, height, width) in one row.
 * @param {Pixels} pixels
 * @param {PixelSteps} steps
 * @returns {{values: Float32Array, width: number, height: number}}
 */
export function process(pixels, steps) {
  const { scale, mean, std } = steps;
  const made = resize(pixels, ...resizedSize(pixels, steps), steps.resample);
  const [width, height] = steps.crop ?? [made.width, made.height];
  const left = middle(made.width - width, steps.even_crop);
  const top = middle(made.height - height, steps.even_crop);
  const values = new Float32Array(3 * height * width);
  for (let c = 0, to = 0; c < 3; c++) {
    for (let y = top; y < top + height; y++) {
      for (let x = left; x < left + width; x++) {
        values[to++] = (made.data[4 * (y * made.width + x) + c] * scale - mean[c]) / std[c];
      }
    }
  }
  return { values, width, height };
}

/** @type {(pixels: Pixels, steps: PixelSteps) => [number, number]} */
function resizedSize({ width, height }, { size, shortest_edge }) {
  if (!shortest_edge) return size ?? [width, height];
  const shorter = Math.min(width, height);
  return [Math.floor((width * shortest_edge) / shorter), Math.floor((height * shortest_edge) / shorter)];
}

/** @type {(space: number, even: boolean) => number} */
function middle(space, even) {
  const half = Math.floor(space / 2);
  return even && space % 2 && half % 2 ? half + 1 : half;
}
