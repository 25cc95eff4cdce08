// A file of an image to `sigcam serve` by JavaScript's fetch: in Node from 18 on, Deno or Bun as it
// stands, in a web page with the file of an <input> (start the server with --allow-origin then).
//
//     node examples/clients/with_fetch.mjs cat.jpg map.png MODEL [http://127.0.0.1:8000]
//
// Prints the three most probable classes with their boxes, and writes the map of the first one,
// by the Open Inference Protocol with binary data both ways.
import { readFile, writeFile } from "node:fs/promises";

const LENGTH = "Inference-Header-Content-Length";

// An element of a BYTES tensor is its length, in 4 bytes, and then itself.
function elementOf(bytes) {
  const head = new Uint8Array(4);
  new DataView(head.buffer).setUint32(0, bytes.length, true);
  return [head, bytes];
}

function elementsOf(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const found = [];
  for (let place = 0; place < bytes.length; ) {
    const length = view.getUint32(place, true);
    found.push(bytes.subarray(place + 4, place + 4 + length));
    place += 4 + length;
  }
  return found;
}

export async function infer(url, model, image, outputs, parameters) {
  const request = {
    inputs: [
      {
        name: "encoded_image",
        shape: [1],
        datatype: "BYTES",
        parameters: { binary_data_size: 4 + image.length },
      },
    ],
    outputs: outputs.map((name) => ({ name, parameters: { binary_data: true } })),
    parameters,
  };
  const head = new TextEncoder().encode(JSON.stringify(request));
  const answer = await fetch(`${url}/v2/models/${encodeURIComponent(model)}/infer`, {
    method: "POST",
    headers: { "Content-Type": "application/octet-stream", [LENGTH]: String(head.length) },
    body: new Blob([head, ...elementOf(image)]),
  });
  if (!answer.ok) throw new Error((await answer.json()).error);
  const body = new Uint8Array(await answer.arrayBuffer());
  let place = Number(answer.headers.get(LENGTH));
  const told = JSON.parse(new TextDecoder().decode(body.subarray(0, place)));
  const found = {};
  for (const output of told.outputs) {
    const size = output.parameters.binary_data_size;
    found[output.name] = elementsOf(body.subarray(place, place + size));
    place += size;
  }
  return found;
}

const [file, out, model, url = "http://127.0.0.1:8000"] = process.argv.slice(2);
const image = new Uint8Array(await readFile(file));
const outputs = ["explanations", "overlay_png"];
const found = await infer(url, model, image, outputs, { top_k: 3 });
for (const text of found.explanations) {
  const one = JSON.parse(new TextDecoder().decode(text));
  console.log([one.label, one.probability.toFixed(4), JSON.stringify(one.boxes)].join("\t"));
}
await writeFile(out, found.overlay_png[0]);
