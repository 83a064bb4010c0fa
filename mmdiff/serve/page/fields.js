// JSON on its way: which fields have which values so far, where some characters are still open.

export const OPEN = "▒";
const TYPES = ["string", "integer", "number", "boolean"];

// A schema from lines such as `color`, `count: integer`, `size: small | large`.
export function schemaOf(lines) {
  const properties = {};
  for (const line of lines.split("\n").map((each) => each.trim()).filter(Boolean)) {
    const at = line.indexOf(":");
    const name = (at < 0 ? line : line.slice(0, at)).trim();
    const kind = at < 0 ? "string" : line.slice(at + 1).trim();
    if (!name) throw new Error(`The field "${line}" has no name.`);
    if (TYPES.includes(kind)) properties[name] = { type: kind };
    else if (kind.includes("|")) properties[name] = { enum: kind.split("|").map((each) => each.trim()) };
    else throw new Error(`The field "${name}" has the unknown type "${kind}"; use ${TYPES.join(", ")}, or a | b.`);
  }
  if (!Object.keys(properties).length) throw new Error("There are no fields; name at least one.");
  return { type: "object", properties, required: Object.keys(properties), additionalProperties: false };
}

// [{path, value, complete}] of a text that may break off or hold open positions anywhere.
export function valuesOf(text) {
  const found = [];
  const stack = [];
  let at = 0;
  const path = () => stack.map((each) => each.name).filter((name) => name !== "").join(".");
  const blank = () => { while (at < text.length && /[\s,]/.test(text[at])) at++; };
  const string = () => {
    let value = "";
    for (at++; at < text.length && text[at] !== '"'; at++) {
      if (text[at] !== "\\") { value += text[at]; continue; }
      const escapes = { n: "\n", t: "\t", r: "\r", b: "\b", f: "\f" };
      at++;
      if (text[at] === "u" && /^[0-9a-fA-F]{4}/.test(text.slice(at + 1))) {
        value += String.fromCharCode(parseInt(text.slice(at + 1, at + 5), 16));
        at += 4;
      } else value += escapes[text[at]] ?? text[at] ?? "";
    }
    const complete = at < text.length && !value.includes(OPEN);
    at++;
    return { value, complete };
  };
  while (at < text.length) {
    blank();
    const here = stack[stack.length - 1];
    const character = text[at];
    if (character === undefined) break;
    if (character === "}" || character === "]") { stack.pop(); at++; continue; }
    if (here && here.kind === "{" && !here.valueNext) {
      if (character !== '"') { at++; continue; }
      here.name = string().value;
      while (at < text.length && /[\s:]/.test(text[at])) at++;
      here.valueNext = true;
      continue;
    }
    if (here) { here.valueNext = false; if (here.kind === "[") here.name = String(here.count++); }
    if (character === "{" || character === "[") { stack.push({ kind: character, name: "", count: 0, valueNext: false }); at++; continue; }
    if (!here) { at++; continue; }
    if (character === '"') { found.push({ path: path(), ...string() }); continue; }
    let value = "";
    while (at < text.length && !/[\s,}\]]/.test(text[at])) value += text[at++];
    found.push({ path: path(), value, complete: at < text.length && !value.includes(OPEN) });
  }
  return found;
}
