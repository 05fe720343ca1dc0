/**
 * A service worker that keeps a copy of every file that the site loads. Where there is a network, the files come from
 * there, so that a new version is seen at once; without one, the copies answer.
 */

const COPIES = 'site';
const WEIGHTS = /\/model-\w+\.onnx$/;

/** @type {any} what `self` is in a service worker, which TypeScript can't know */
const scope = self;

scope.addEventListener('install', () => scope.skipWaiting());
scope.addEventListener('activate', (/** @type {any} */ event) => event.waitUntil(scope.clients.claim()));

scope.addEventListener('fetch', (/** @type {any} */ event) => {
  const { request } = event;
  if (request.method !== 'GET' || request.headers.has('range') || !isOwn(request.url)) return;
  event.respondWith(
    fetch(request).then(
      response => {
        if (response.status === 200) event.waitUntil(keep(request.url, response.clone()));
        return response;
      },
      async error => (await copyOf(request.url)) ?? Promise.reject(error),
    ),
  );
});

/** The page sends the addresses of what it had loaded before this script was in control. */
scope.addEventListener('message', (/** @type {any} */ event) => {
  const addresses = /** @type {string[]} */ (event.data).filter(isOwn);
  event.waitUntil(Promise.all(addresses.map(async url => (await copyOf(url)) ?? keep(url, await fetch(url)))));
});

/** @param {string} url */
const isOwn = url => new URL(url).origin === location.origin;

/** @param {string} url whose query, such as the Hub's signature, does not matter */
async function copyOf(url) {
  return (await caches.open(COPIES)).match(url, { ignoreSearch: true });
}

/**
 * Stores a copy, in place of an earlier one; of weights, only the current ones are kept.
 * @type {(url: string, response: Response) => Promise<void>}
 */
async function keep(url, response) {
  try {
    const copies = await caches.open(COPIES);
    const { pathname } = new URL(url);
    const isReplaced = (/** @type {Request} */ old) => {
      const path = new URL(old.url).pathname;
      return path === pathname || (WEIGHTS.test(path) && WEIGHTS.test(pathname));
    };
    await Promise.all((await copies.keys()).filter(isReplaced).map(old => copies.delete(old)));
    await copies.put(url, response);
  } catch {
    // The browser's storage is full: the site works as long as there is a network.
  }
}
