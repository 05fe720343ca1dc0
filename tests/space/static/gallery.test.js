import assert from 'node:assert/strict';
import { test } from 'node:test';

import { nextPosition } from '../../../space/static/gallery.js';

test('arrow keys step through a grid of five columns and seven tiles', () => {
  const press = (key, from) => nextPosition(key, from, 7, 5);
  assert.equal(press('ArrowRight', 0), 1);
  assert.equal(press('ArrowRight', 4), 5); // into the next row
  assert.equal(press('ArrowLeft', 5), 4);
  assert.equal(press('ArrowDown', 1), 6);
  assert.equal(press('ArrowUp', 6), 1);
  assert.equal(press('Home', 6), 0);
  assert.equal(press('End', 0), 6);
});

test('a key that leads out of the grid, or is no arrow, moves nothing', () => {
  const press = (key, from) => nextPosition(key, from, 7, 5);
  assert.equal(press('ArrowLeft', 0), undefined);
  assert.equal(press('ArrowUp', 4), undefined);
  assert.equal(press('ArrowRight', 6), undefined);
  assert.equal(press('ArrowDown', 2), undefined); // the last row has two tiles
  assert.equal(press('Enter', 3), undefined);
  assert.equal(press('constructor', 3), undefined);
});
