import assert from 'node:assert/strict';
import { test } from 'node:test';

import { filesIn } from '../../../space/static/folders.js';

/** Entries as a browser gives them: asynchronous, and of a folder at most `atOnce` at a time. */
const file = (path, error) => ({
  name: path.split('/').at(-1),
  fullPath: path,
  isFile: true,
  file: (resolve, reject) => setImmediate(() => (error ? reject(error) : resolve(path))),
});
const folder = (path, entries, atOnce = 100) => ({
  name: path.split('/').at(-1),
  fullPath: path,
  isFile: false,
  createReader: () => {
    let read = 0;
    return {
      readEntries: (resolve, reject) =>
        setImmediate(() => {
          if (!entries) return reject(new Error('not readable'));
          read += atOnce;
          resolve(entries.slice(read - atOnce, read));
        }),
    };
  },
});

test('files of a folder and its subfolders come in order, without hidden ones', async () => {
  const deeper = folder('/a/deeper', [file('/a/deeper/2.png'), file('/a/deeper/.thumbs')]);
  const hidden = folder('/a/.git', [file('/a/.git/3.png')]);
  const unreadable = [];
  const found = await filesIn(folder('/a', [file('/a/1.png'), deeper, hidden, file('/a/4.png')]), unreadable);
  assert.deepEqual(found, ['/a/1.png', '/a/deeper/2.png', '/a/4.png']);
  assert.deepEqual(unreadable, []);
});

test('a folder of more files than the browser returns at once is read to its end', async () => {
  const names = Array.from({ length: 250 }, (_, i) => `/a/${i}.png`);
  assert.deepEqual(
    await filesIn(
      folder(
        '/a',
        names.map(name => file(name)),
      ),
      [],
    ),
    names,
  );
});

test('what can not be read is named, and the rest is returned', async () => {
  const entries = [file('/a/gone.png', new Error('gone')), file('/a/1.png'), folder('/a/locked', undefined)];
  const unreadable = [];
  assert.deepEqual(await filesIn(folder('/a', entries), unreadable), ['/a/1.png']);
  assert.deepEqual(unreadable.sort(), ['/a/gone.png', '/a/locked']);
});
