/**
 * Classifies pictures in a thread of its own, so that the page stays responsive.
 *
 * The page sends `{visit, index, file}`; it gets `{ready: {engine, threads, loaded}}` once, or `{failed}`, and for each
 * picture `{visit, index, preview, probabilities, known}` or `{visit, index, error}`. `preview` is a small JPEG, and
 * `known` is null for a model without a threshold. `visit` is a number that the page raises when it clears its list:
 * pictures of an earlier one are left out.
 */

import { process, reducedSize, resize } from './pixels.js';
import { SCORES, softmax } from './scores.js';

const DRAFT = 2; // the browser shrinks a picture to this many times the size that is wanted; the rest is done exactly
const PREVIEW = { width: 320, height: 240 }; // pixels

/** @returns {null} in place of what failed */
const nothing = () => null;

/** @type {Promise<Classifier>} */
const loading = load();
loading.then(
  ({ engine, threads }) => {
    const loaded = performance.getEntriesByType('resource').map(each => each.name);
    postMessage({ ready: { engine, threads, loaded } });
  },
  error => postMessage({ failed: error.message }),
);

/** @type {{visit: number, index: number, file: File}[]} */
let queue = [];
let isWorking = false;

addEventListener('message', ({ data: message }) => {
  queue = queue.filter(({ visit }) => visit === message.visit);
  if (message.file) queue.push(message);
  if (!isWorking) work();
});

/** Classifies the pictures of the queue, and decodes the next one meanwhile. */
async function work() {
  isWorking = true;
  const classifier = await loading.catch(() => /** @type {Classifier} */ (null));
  let ahead = null;
  while (classifier && (ahead || queue.length)) {
    const { visit, index, decoding } = ahead ?? begin(queue.shift());
    ahead = queue.length ? begin(queue.shift()) : null;
    const decoded = await decoding;
    if (!decoded) {
      postMessage({ visit, index, error: 'this browser can’t read the file: choose a JPEG, PNG or WebP' });
      continue;
    }
    try {
      postMessage({ visit, index, preview: decoded.preview, ...(await classify(classifier, decoded.pixels)) });
    } catch (error) {
      postMessage({ failed: /** @type {Error} */ (error).message }); // of the engine: no picture would work
      break;
    }
  }
  isWorking = false;

  /** @param {{visit: number, index: number, file: File}} message */
  function begin({ visit, index, file }) {
    return { visit, index, decoding: decode(file, classifier.model.reduce_to).catch(nothing) };
  }
}

/**
 * What the page has to know of the model: model.json, which classifier/publish/static_site.py writes.
 * @typedef {object} Model
 * @property {string} weights name of the ONNX file
 * @property {string[]} labels
 * @property {string[]} facts for the header
 * @property {number | null} reduce_to pixels to which the shorter side of a picture is reduced first
 * @property {import('./pixels.js').PixelSteps} steps
 * @property {{score: keyof typeof SCORES, threshold: number | null, resize_to: number | null}} ood
 */

/**
 * The model and its engine.
 * @typedef {object} Classifier
 * @property {Model} model
 * @property {any} ort onnxruntime-web
 * @property {any} session
 * @property {string} engine
 * @property {number} threads
 */

/**
 * Loads the model: with WebGPU where there is one, else WebAssembly on all cores.
 * @returns {Promise<Classifier>}
 */
async function load() {
  const model = await (await fetch('model.json')).json();
  const threads = globalThis.crossOriginIsolated ? Math.min(8, navigator.hardwareConcurrency) : 1;
  // An adapter may be there and yet not compute this model.
  const gpu = await navigator.gpu?.requestAdapter().catch(nothing);
  const byGpu = gpu && (await start('webgpu', model.weights, threads).catch(nothing));
  if (byGpu) return { model, ...byGpu, engine: 'WebGPU', threads };
  return { model, ...(await start('wasm', model.weights, threads)), engine: 'WebAssembly', threads };
}

/** @type {(provider: 'webgpu' | 'wasm', weights: string, threads: number) => Promise<{ort: any, session: any}>} */
async function start(provider, weights, threads) {
  const ort = await import(`./onnxruntime/ort.${provider}.min.mjs`);
  ort.env.wasm.wasmPaths = new URL('./onnxruntime/', import.meta.url).href;
  ort.env.wasm.numThreads = threads;
  return { ort, session: await ort.InferenceSession.create(weights, { executionProviders: [provider] }) };
}

/**
 * The pixels of a picture, upright on white, its shorter side reduced to `reduceTo`; and a small copy to show.
 * @param {Blob} file
 * @param {number | null} reduceTo
 */
async function decode(file, reduceTo) {
  const bitmap = await createImageBitmap(file); // upright by its EXIF orientation, in sRGB
  try {
    const wanted = reducedSize(bitmap.width, bitmap.height, reduceTo);
    const draft = reducedSize(bitmap.width, bitmap.height, reduceTo && DRAFT * reduceTo);
    const drawn = draw(bitmap, draft.width, draft.height).getImageData(0, 0, draft.width, draft.height);
    const scale = Math.min(1, PREVIEW.width / bitmap.width, PREVIEW.height / bitmap.height);
    const [width, height] = [bitmap.width, bitmap.height].map(side => Math.max(1, Math.round(scale * side)));
    const preview = await draw(bitmap, width, height).canvas.convertToBlob({ type: 'image/jpeg', quality: 0.85 });
    return { pixels: resize(drawn, wanted.width, wanted.height, 'lanczos'), preview };
  } finally {
    bitmap.close();
  }
}

/**
 * A picture drawn on white.
 * @type {(bitmap: ImageBitmap, width: number, height: number) => OffscreenCanvasRenderingContext2D}
 */
function draw(bitmap, width, height) {
  const context = new OffscreenCanvas(width, height).getContext('2d', { willReadFrequently: true });
  context.imageSmoothingQuality = 'high';
  context.fillStyle = 'white';
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0, width, height);
  return context;
}

/**
 * @param {Classifier} classifier
 * @param {import('./pixels.js').Pixels} pixels
 */
async function classify(classifier, pixels) {
  const { score, threshold, resize_to } = classifier.model.ood;
  const logits = await run(classifier, pixels);
  if (threshold === null) return { probabilities: softmax(logits), known: null };
  let value = SCORES[score](logits);
  if (resize_to && Math.min(pixels.width, pixels.height) > resize_to) {
    value = (value + SCORES[score](await run(classifier, resize(pixels, resize_to, resize_to, 'lanczos')))) / 2;
  }
  return { probabilities: softmax(logits), known: value >= threshold };
}

/**
 * The logits of a picture.
 * @param {Classifier} classifier
 * @param {import('./pixels.js').Pixels} pixels
 * @returns {Promise<Float32Array>}
 */
async function run({ ort, session, model }, pixels) {
  const { values, width, height } = process(pixels, model.steps);
  const { logits } = await session.run({ pixel_values: new ort.Tensor('float32', values, [1, 3, height, width]) });
  return logits.data;
}
