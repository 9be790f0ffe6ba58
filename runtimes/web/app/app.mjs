// The page: runs the model on the example, shows the outputs, how near they are to what is expected, and the time of a run.

import { MODEL, PROVIDER } from './files.mjs';
import { fetchFile, load, tensor, threads, version } from './model.mjs';
import { decode } from './tensors.mjs';

const SHOWN = 6;
const LEAST_RUNS = 5;
const MOST_RUNS = 200;
const MILLISECONDS = 1000;
const FAR = 0.05; // more than engines round, even in integers

/** What the last run computed: {name, type, dims, data}. */
export let outputs = [];

const part = (id) => document.getElementById(id);
const cell = (text, kind = 'td') => Object.assign(document.createElement(kind), { textContent: text });
const row = (...cells) => {
  const made = document.createElement('tr');
  made.append(...cells.map((text) => cell(text)));
  return made;
};
const short = (value) => (typeof value === 'number' ? Number(value.toPrecision(5)).toString() : String(value));
const milliseconds = (value) => (value < 1000 ? `${value.toFixed(value < 10 ? 2 : 1)} ms` : `${(value / 1000).toFixed(2)} s`);

function say(state, text) {
  document.documentElement.dataset.state = state;
  part('state').textContent = text;
}

/** The largest difference of two arrays, as a part of the largest number in the expected one. */
function difference(actual, expected) {
  let most = 0;
  let peak = 0;
  if (actual.length !== expected.length) return Infinity;
  for (let i = 0; i < expected.length; i += 1) {
    if (typeof expected[i] === 'string') {
      if (actual[i] !== expected[i]) return Infinity;
    } else if (!Object.is(actual[i], expected[i])) {
      most = Math.max(most, Math.abs(Number(actual[i]) - Number(expected[i])));
    }
    if (typeof expected[i] !== 'string') peak = Math.max(peak, Math.abs(Number(expected[i])));
  }
  return most === 0 ? 0 : most / (peak || 1);
}

async function time(model, feeds) {
  const times = [];
  const begun = performance.now();
  while (times.length < LEAST_RUNS || (times.length < MOST_RUNS && performance.now() - begun < MILLISECONDS)) {
    const start = performance.now();
    await model.run(feeds);
    times.push(performance.now() - start);
  }
  times.sort((a, b) => a - b);
  return times;
}

async function main() {
  part('engine').textContent = `onnxruntime-web ${version}, ${PROVIDER}, ${threads} thread${threads > 1 ? 's' : ''}`;
  say('loading', `Loading ${MODEL} …`);
  const begun = performance.now();
  const model = await load();
  const loaded = performance.now() - begun;
  const [inputs, expected] = (await Promise.all(['example-inputs.bin', 'example-outputs.bin'].map(fetchFile))).map(decode);
  const feeds = Object.fromEntries(inputs.map(({ name, type, data, dims }) => [name, tensor(type, data, dims)]));
  part('inputs').replaceChildren(...inputs.map(({ name, type, dims }) => row(name, type, dims.join(' × ') || 'scalar')));
  say('running', 'Running the example …');
  const found = await model.run(feeds);
  outputs = model.session.outputNames.map((name) => {
    const { type, dims, data } = found[name];
    return { name, type, dims, data };
  });
  let worst = 0;
  part('outputs').replaceChildren(...outputs.map(({ name, type, dims, data }) => {
    const wanted = expected.find((each) => each.name === name);
    const far = difference(data, wanted.data);
    worst = Math.max(worst, far);
    const first = [...data.slice(0, SHOWN)].map(short).join(', ') + (data.length > SHOWN ? ', …' : '');
    return row(name, type, dims.join(' × ') || 'scalar', far === 0 ? 'equal' : far.toExponential(1), first);
  }));
  document.documentElement.dataset.agrees = worst <= FAR;
  const by = `by at most ${worst.toExponential(1)} of their largest value`;
  const agreement = worst === 0 ? 'The model answers as expected.'
    : worst <= FAR ? `The model answers as expected: the outputs differ ${by}.`
    : `The outputs differ from what is expected, ${by}.`;
  say('running', `${agreement} Timing …`);
  const times = await time(model, feeds);
  part('median').textContent = milliseconds(times[times.length >> 1]);
  part('fastest').textContent = milliseconds(times[0]);
  part('load').textContent = milliseconds(loaded);
  part('runs').textContent = times.length;
  say('done', agreement);
}

part('again').addEventListener('click', () => start());

function start() {
  part('again').disabled = true;
  main()
    .catch((error) => say('failed', String(error)))
    .finally(() => { part('again').disabled = false; });
}

start();
