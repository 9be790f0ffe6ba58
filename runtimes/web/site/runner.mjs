// What the page does when asked through DevTools: hold onnxruntime-web's sessions, run and time them.
// Tensors do not travel in the questions and answers but are fetched from, and posted to, addresses that are given.

import { decode, encode } from './tensors.mjs';

const WINDOW_MILLISECONDS = 100;
const IDLE_WINDOWS = 4;
const WARM_MILLISECONDS = 3000;

const sessions = new Map();
const warmed = new Set();
let ort;
let count = 0;

/** Load onnxruntime-web; its version. */
export async function start(library, folder, threads) {
  ort = await import(library);
  ort.env.wasm.wasmPaths = folder;
  ort.env.wasm.numThreads = threads;
  return ort.env.versions.web;
}

/** Whether there is an adapter for WebGPU, and whether it is a processor that pretends to be one. */
export async function adapter() {
  const found = await navigator.gpu?.requestAdapter();
  return found ? { info: found.info?.description || found.info?.vendor || 'unknown' } : null;
}

/** Load a model from an address; external data are [{path, data: address}]. */
export async function open(model, externalData, options, verbose) {
  ort.env.logLevel = verbose ? 'verbose' : 'warning';
  const begun = performance.now();
  const session = await ort.InferenceSession.create(model, { ...options, externalData, logSeverityLevel: verbose ? 0 : 2 });
  const seconds = (performance.now() - begun) / 1000;
  count += 1;
  sessions.set(count, { session });
  const describe = (values) => values.map(({ name, type, shape }) => ({ name, type: type ?? '', shape: shape ?? [] }));
  return { id: count, seconds, inputs: describe(session.inputMetadata), outputs: describe(session.outputMetadata) };
}

/** Fetch the inputs that the next runs use. */
export async function feed(id, address) {
  const response = await fetch(address);
  const tensors = decode(await response.arrayBuffer());
  sessions.get(id).feeds = Object.fromEntries(tensors.map((each) => [each.name, new ort.Tensor(each.type, each.data, each.dims)]));
}

/** Run once and post the outputs. */
export async function run(id, address) {
  const { session, feeds } = sessions.get(id);
  const outputs = await session.run(feeds);
  const tensors = session.outputNames.map((name) => ({ name, type: outputs[name].type, dims: outputs[name].dims, data: outputs[name].data }));
  await fetch(address, { method: 'POST', body: encode(tensors) });
}

/** Run at least this many times, and for at least so long: how many runs, milliseconds of all of them and of the fastest. */
export async function time(id, repeats, least) {
  const { session, feeds } = sessions.get(id);
  const begun = performance.now();
  let runs = 0;
  let milliseconds = 0;
  let fastest = Infinity;
  while (runs < repeats || milliseconds < least) {
    await session.run(feeds);
    runs += 1;
    const passed = performance.now() - begun;
    fastest = Math.min(fastest, passed - milliseconds);
    milliseconds = passed;
  }
  return { runs, milliseconds, fastest };
}

/** Run until runs get no faster: a browser compiles WebAssembly quickly first, and what runs often again, and better.
 *  Once for each model file, which key tells apart: the code stays. */
export async function warm(id, key) {
  if (warmed.has(key)) return;
  warmed.add(key);
  const begun = performance.now();
  let fastest = Infinity;
  for (let idle = 0; idle < IDLE_WINDOWS && performance.now() - begun < WARM_MILLISECONDS;) {
    const found = await time(id, 1, WINDOW_MILLISECONDS);
    idle = found.fastest < 0.97 * fastest ? 0 : idle + 1;
    fastest = Math.min(fastest, found.fastest);
  }
}

/** Write what was profiled to the console. */
export function endProfiling(id) {
  sessions.get(id).session.endProfiling();
}

/** Free a model. */
export async function close(id) {
  const held = sessions.get(id);
  sessions.delete(id);
  await held?.session.release();
}
