import assert from 'node:assert/strict';
import { test } from 'node:test';

import { process, reducedSize, resize, sampling } from '../../../space/static_site/pixels.js';

const STEPS = { size: null, shortest_edge: null, resample: 'bilinear', crop: null, even_crop: false };
const RAW = { scale: 1, mean: [0, 0, 0], std: [1, 1, 1] };

/** A picture whose red values are given, row by row; green is twice and blue three times as high. */
function picture(width, red) {
  const data = new Uint8ClampedArray(red.flatMap(value => [value, 2 * value, 3 * value, 255]));
  return { width, height: red.length / width, data };
}

test('half the pixels are made by a triangle that is twice as wide, by hand', () => {
  const [first, second] = sampling(4, 2, 'bilinear');
  assert.equal(first.first, 0);
  assert.deepEqual([...first.weights], [3 / 7, 3 / 7, 1 / 7]); // 0.75, 0.75 and 0.25 at distances of 0.5, 0.5 and 1.5
  assert.equal(second.first, 1);
  assert.deepEqual([...second.weights], [1 / 7, 3 / 7, 3 / 7]);
});

test('every kernel leaves an even picture even, and a picture of the same size as it is', () => {
  const even = picture(5, Array(20).fill(70));
  for (const filter of ['bilinear', 'bicubic', 'lanczos']) {
    const made = resize(even, 3, 7, filter);
    assert.deepEqual([made.width, made.height, made.data.length], [3, 7, 84]);
    for (let i = 0; i < made.data.length; i += 4) assert.deepEqual([...made.data.slice(i, i + 3)], [70, 140, 210]);
    assert.equal(resize(even, 5, 4, filter), even);
  }
});

test('rows and columns are rounded one after the other, by hand', () => {
  const made = resize(picture(2, [0, 11, 20, 42]), 1, 1, 'bilinear');
  assert.deepEqual([...made.data.slice(0, 3)], [19, 37, 55]); // red: 6 and 31 in the rows, then 18.5
});

test('the input of the model is normalised channel by channel, and its middle is cropped', () => {
  const red = Array.from({ length: 9 }, (_, i) => i);
  const { values, width, height } = process(picture(3, red), {
    ...STEPS,
    crop: [1, 1],
    scale: 0.5,
    mean: [1, 1, 1],
    std: [1, 2, 4],
  });
  assert.deepEqual([width, height], [1, 1]);
  assert.deepEqual([...values], [4 * 0.5 - 1, (8 * 0.5 - 1) / 2, (12 * 0.5 - 1) / 4]);
});

test('half a pixel beside the middle is rounded down, or to the even number as timm does', () => {
  const red = [0, 1, 2, 3];
  const left = even_crop => process(picture(4, red), { ...STEPS, ...RAW, crop: [1, 1], even_crop }).values[0];
  assert.equal(left(false), 1); // 3 pixels are left: 1.5
  assert.equal(left(true), 2);
});

test('the shorter side is resized, and the longer one is rounded down', () => {
  const made = process(picture(5, Array(15).fill(9)), { ...STEPS, ...RAW, shortest_edge: 2 });
  assert.deepEqual([made.width, made.height], [3, 2]); // 5 × 2 / 3 = 3.3
});

test('nothing is enlarged by a reduction', () => {
  assert.deepEqual(reducedSize(4000, 3000, 300), { width: 400, height: 300 });
  assert.deepEqual(reducedSize(200, 150, 300), { width: 200, height: 150 });
  assert.deepEqual(reducedSize(200, 150, null), { width: 200, height: 150 });
  assert.deepEqual(reducedSize(30_000, 300, 100), { width: 2000, height: 100 }); // a strip
});
