/** Files in folders that are dropped on the page. */

/**
 * All files of a dropped entry, of a folder those in its subfolders too. Files and folders whose name starts with a dot
 * are left out.
 * @param {FileSystemEntry} entry
 * @param {string[]} unreadable receives the paths of what can't be read; the rest is still returned
 * @returns {Promise<File[]>}
 */
export async function filesIn(entry, unreadable) {
  if (isHidden(entry)) return [];
  try {
    if (entry.isFile) return [await fileOf(/** @type {FileSystemFileEntry} */ (entry))];
    const entries = await entriesOf(/** @type {FileSystemDirectoryEntry} */ (entry));
    return (await Promise.all(entries.map(each => filesIn(each, unreadable)))).flat();
  } catch {
    unreadable.push(entry.fullPath);
    return [];
  }
}

/** @param {{name: string}} file a file or an entry */
export function isHidden(file) {
  return file.name.startsWith('.');
}

/**
 * @param {FileSystemFileEntry} entry
 * @returns {Promise<File>}
 */
function fileOf(entry) {
  return new Promise((resolve, reject) => entry.file(resolve, reject));
}

/** @param {FileSystemDirectoryEntry} directory */
async function entriesOf(directory) {
  const reader = directory.createReader();
  const entries = [];
  for (;;) {
    // A browser returns some entries at a time (Chrome 100), and none at the end
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return entries;
    entries.push(...some);
  }
}
