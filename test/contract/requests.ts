/** Append requests for property tests: valid ones in every spelling, and steps that damage one. */
import { Arbitrary } from "effect"
import type { ObjectId } from "../../src/contract/ObjectId.ts"
import * as draw from "./arbitraries.ts"

export const escaped = (text: string): string =>
  `"${[...Array(text.length).keys()].map((at) => `\\u${text.charCodeAt(at).toString(16).padStart(4, "0")}`).join("")}"`

/** A request in one of many spellings: order and names of members, white space, escapes, further and repeated members. */
export const spelledFor = (
  ids: Arbitrary.Arbitrary<ObjectId>,
): Arbitrary.Arbitrary<{ readonly text: string; readonly id: ObjectId; readonly log: string }> =>
  Arbitrary.map(
    Arbitrary.all([ids, draw.text, Arbitrary.array(draw.int(0, 0xffff), { minLength: 12, maxLength: 12 }), draw.text]),
    ([id, log, choices, requestId]) => {
      const [form, order, space, more, again, name, ...rest] = choices as [
        number,
        number,
        number,
        number,
        number,
        number,
        ...Array<number>,
      ]
      const number = form % 3 === 0 ? `"${id}"` : `${id}`
      const members = [
        `${name % 8 === 0 ? escaped("id") : '"id"'}:${number}`,
        `"log":${form % 5 === 0 ? escaped(log) : JSON.stringify(log)}`,
      ]
      if (order % 2 === 0) members.reverse()
      if (more % 3 === 0) members.push(`"request_id":${JSON.stringify(requestId)}`)
      if (more % 5 === 0) members.unshift('"reply_to":"_INBOX.a.b"')
      if (more % 7 === 0) members.push('"reply_to":"response.a"')
      if (more % 4 === 0) members.splice((rest[0] ?? 0) % 3, 0, '"x":{"id":[1,{"id":-2.5e1}],"log":null,"":{"id":3}}')
      if (again % 6 === 0) members.unshift('"id":17')
      if (again % 7 === 0) members.push(`"id":${id ^ 1n}`)
      if (again % 11 === 0) members.push('"log":"id"')
      const gap = space % 3 === 0 ? " " : space % 7 === 0 ? "\t\r\n" : ""
      return { text: `${gap}{${gap}${members.join(`${gap},${gap}`)}${gap}}${gap}`, id, log }
    },
  )

export const spelled = spelledFor(draw.id)

/** What damages a request without always breaking its syntax. */
const fragments = [
  ...Array.from('{}[]":,\\0123456789-+.eE \n\tidlogu'),
  "\u0000",
  "\ufeff",
  "é",
  '"id"',
  '"id":1,',
  '"id":18446744073709551615,',
  ',"id":-0',
  '"i\\u0064":2,',
  '"log":"",',
  "00",
  ".0",
  "e1",
  "null",
  '"reply_to":"_INBOX.*",',
  '"request_id":"",',
  "_INBOX.",
].map((text) => Buffer.from(text))

export const damage = Arbitrary.array(
  Arbitrary.all([draw.int(0, 5), draw.int(0, 0xffff), draw.int(0, 0xffff), draw.pick(fragments)]),
  { maxLength: 4 },
)

export const damaged = (
  source: Buffer,
  steps: ReadonlyArray<readonly [kind: number, at: number, length: number, fragment: Uint8Array]>,
): Buffer => {
  let payload = source
  for (const [kind, at, length, fragment] of steps) {
    const start = at % (payload.length + 1)
    const end = Math.min(payload.length, start + 1 + (length % (kind === 4 ? 12 : 2)))
    const middle =
      kind === 0
        ? Uint8Array.from([length % 256])
        : kind === 1 || kind === 4
          ? new Uint8Array()
          : kind === 5
            ? Buffer.concat([payload.subarray(start, end), payload.subarray(start, end)])
            : fragment
    // Kind 2 inserts, the others replace.
    payload = Buffer.concat([payload.subarray(0, start), middle, payload.subarray(kind === 2 ? start : end)])
  }
  return payload
}
