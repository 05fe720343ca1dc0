import assert from 'node:assert/strict';
import { test } from 'node:test';

import { csvRow, SCORES, softmax, topLabels } from '../../../space/static_site/scores.js';

const near = (a, b) => assert.ok(Math.abs(a - b) < 1e-12, `${a} is not ${b}`);

test('probabilities and scores, by hand', () => {
  const logits = [Math.log(3), 0];
  near(softmax(logits)[0], 0.75);
  near(SCORES.energy(logits), Math.log(4));
  near(SCORES.gen(logits), -2 * (0.75 * 0.25) ** 0.1);
  near(SCORES.max_probability(logits), 0.75);
  near(SCORES.energy([1000, 1000]), 1000 + Math.log(2)); // no overflow
});

test('the most probable label is first', () => {
  assert.deepEqual(topLabels([0.2, 0.5, 0.3], ['a', 'b', 'c'], 2), [
    { label: 'b', probability: 0.5 },
    { label: 'c', probability: 0.3 },
  ]);
});

test('a cell with a comma or quotes is quoted', () => {
  assert.equal(csvRow([0, 'a, "b".jpg', 'True', '']), '0,"a, ""b"".jpg",True,\r\n');
});
