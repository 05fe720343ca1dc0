import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

import { mapSome, reduce, reducedSize } from '../../../space/static/reduce.js';

test('the shorter side is reduced, and nothing is enlarged', () => {
  assert.deepEqual(reducedSize(4000, 3000, 300), [400, 300]);
  assert.deepEqual(reducedSize(3000, 4000, 300), [300, 400]);
  assert.deepEqual(reducedSize(1000, 333, 100), [300, 100]);
  assert.deepEqual(reducedSize(200, 150, 300), [200, 150]);
});

test('what can not be drawn is sent as it is', async () => {
  const file = new File(['no image'], 'text.jpg'); // Node can't draw any
  assert.equal(await reduce(file, 300), file);
});

test('results are in the order of the items, of which four are worked on at the same time', async () => {
  let now = 0;
  let most = 0;
  let done = 0;
  const work = async i => {
    most = Math.max(most, ++now);
    await sleep(20 - i); // later items end first
    now--;
    return i * i;
  };
  const options = { signal: new AbortController().signal, onDone: () => done++ };
  assert.deepEqual(await mapSome([...Array(10).keys()], work, options), [0, 1, 4, 9, 16, 25, 36, 49, 64, 81]);
  assert.equal(most, 4);
  assert.equal(done, 10);
});

test('after a cancel no more items are begun', async () => {
  const controller = new AbortController();
  const begun = [];
  const work = async i => {
    begun.push(i);
    await sleep(1);
    if (i === 1) controller.abort();
  };
  await mapSome([...Array(100).keys()], work, { signal: controller.signal, onDone: () => {} });
  assert.ok(begun.length >= 4 && begun.length <= 8, `${begun.length} of 100 were begun`);
});
