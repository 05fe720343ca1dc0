import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

import { Queue } from '../../../space/static/upload.js';

test('tasks run one after the other, in the order in which they came', async () => {
  const queue = new Queue();
  const log = [];
  const task = (name, milliseconds) => async () => {
    log.push(`${name} begins`);
    await sleep(milliseconds);
    log.push(`${name} ends`);
    return name;
  };
  assert.deepEqual(await Promise.all([queue.add(task('a', 20)), queue.add(task('b', 1))]), ['a', 'b']);
  assert.deepEqual(log, ['a begins', 'a ends', 'b begins', 'b ends']);
});

test('a task that fails says so, and the next one runs', async () => {
  const queue = new Queue();
  const failed = queue.add(async () => {
    throw new Error('no input');
  });
  const next = queue.add(async () => 'next');
  await assert.rejects(failed, /no input/);
  assert.equal(await next, 'next');
});
