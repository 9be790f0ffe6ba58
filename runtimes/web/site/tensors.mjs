// Tensors as bytes: a length (4 bytes), a header in JSON, then the data of each tensor; all padded to multiples of 8.

const ARRAYS = {
  float32: Float32Array, float64: Float64Array, float16: globalThis.Float16Array ?? Uint16Array,
  int8: Int8Array, uint8: Uint8Array, bool: Uint8Array, int16: Int16Array, uint16: Uint16Array,
  int32: Int32Array, uint32: Uint32Array, int64: BigInt64Array, uint64: BigUint64Array,
};
const padded = (size) => size + (-size & 7);

/** Read tensors from an ArrayBuffer: a list of {name, type, dims, data}. */
export function decode(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  let position = padded(4 + length);
  return header.map(({ name, type, dims, bytes, strings }) => {
    if (type === 'string') return { name, type, dims, data: strings };
    const kind = ARRAYS[type];
    const data = new kind(buffer, position, bytes / kind.BYTES_PER_ELEMENT);
    position += padded(bytes);
    return { name, type, dims, data };
  });
}

/** Pack a list of {name, type, dims, data} into bytes. */
export function encode(tensors) {
  const header = tensors.map(({ name, type, dims, data }) =>
    type === 'string' ? { name, type, dims, strings: [...data] } : { name, type, dims, bytes: data.byteLength });
  for (const { type, name } of header) {
    if (type !== 'string' && !(type in ARRAYS)) throw new Error(`${name} is ${type}, which is not an array in JavaScript`);
  }
  const text = new TextEncoder().encode(JSON.stringify(header));
  const numbers = tensors.filter(({ type }) => type !== 'string');
  let position = padded(4 + text.length);
  const packed = new Uint8Array(numbers.reduce((size, { data }) => size + padded(data.byteLength), position));
  new DataView(packed.buffer).setUint32(0, text.length, true);
  packed.set(text, 4);
  for (const { data } of numbers) {
    packed.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), position);
    position += padded(data.byteLength);
  }
  return packed;
}
