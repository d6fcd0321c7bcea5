// A Bee from the plain WIT, without an SDK: `hello` takes {"name": …} and answers.

import { begin } from "skep:bee/step@0.1.0";
import { log } from "wasi:logging/logging@0.1.0-draft";

const bytes = (text) => new TextEncoder().encode(text);
const text = (payload) => new TextDecoder("utf-8", { fatal: true }).decode(payload);

function hello(message) {
  const { name } = JSON.parse(text(message.payload));
  if (name === undefined) {
    return { publish: [], respond: [], disposition: { tag: "reject", val: "the payload has no `name`" } };
  }
  log("info", "hello", `greeting ${name}`);
  const answer = bytes(JSON.stringify({ message: `Hello ${name}` }));
  return { publish: [], respond: [answer], disposition: { tag: "done" } };
}

const BEES = { hello };

export const handler = {
  bees: () => Object.keys(BEES).map((name) => ({ name })),

  // A batch in, one outcome an input out. An exception is that input's failure; uncaught, it would end the instance.
  process: (bee, inputs) =>
    inputs.map((input, index) => {
      begin(index);
      try {
        return BEES[bee](input.val);
      } catch (error) {
        const failure = { reason: error.name, detail: `${error.message}\n${error.stack}` };
        return { publish: [], respond: [], disposition: { tag: "fail", val: failure } };
      }
    }),
};
