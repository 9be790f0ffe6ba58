// The model, for any page: load it once, run it as often as you like.
//
//   import { load, tensor } from './model.mjs';
//   const model = await load();
//   const outputs = await model.run({ input: tensor('float32', numbers, [1, 3, 224, 224]) });
//   outputs.logits.data

import { INTEGRITY, MODEL, PROVIDER, ort } from './files.mjs';

/** Fetch a file of this folder and check that it is the one that was packaged. */
export async function fetchFile(name) {
  const response = await fetch(new URL(encodeURIComponent(name), import.meta.url), { integrity: INTEGRITY[name] });
  if (!response.ok) throw new Error(`${name}: the server says ${response.status} ${response.statusText}`);
  return response.arrayBuffer();
}

/** How many threads there are: shared memory needs the headers that README.md names. */
export const threads = globalThis.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;

export const version = ort.env.versions.web;

/** A tensor of any type of onnxruntime-web: float32, int64 (a BigInt64Array), bool, string, ... */
export const tensor = (type, data, dims) => new ort.Tensor(type, data, dims);

/** Load the model. */
export async function load() {
  ort.env.wasm.wasmPaths = new URL('./ort/', import.meta.url).href;
  ort.env.wasm.numThreads = threads;
  const bytes = new Uint8Array(await fetchFile(MODEL));
  const session = await ort.InferenceSession.create(bytes, { executionProviders: [PROVIDER] });
  return { session, run: (inputs) => session.run(inputs) };
}
