/** Payloads of many kinds: valid requests, and what can be made of them. */
import { Arbitrary } from "effect"
import { cursorText } from "../../src/contract/Cursor.ts"
import type { ObjectId } from "../../src/contract/ObjectId.ts"
import * as draw from "../contract/arbitraries.ts"
import { damaged, escaped, spelledFor } from "../contract/requests.ts"
import type { Choices } from "./choices.ts"

/** Objects that many requests share, so that logs have a length. */
const pooled: Arbitrary.Arbitrary<ObjectId> = Arbitrary.map(
  draw.int(0, 399),
  (n) => (n % 10 === 0 ? 0xffff_ffff_ffff_ffffn - BigInt(n) : BigInt(n)) as ObjectId,
)
const ids = Arbitrary.flatMap(draw.int(0, 9), (n) => (n < 8 ? pooled : draw.id))

/** Read requests that are valid, but for a few that contradict themselves. */
export const reads = Arbitrary.map(
  Arbitrary.all([ids, Arbitrary.array(draw.int(0, 0xffff), { minLength: 8, maxLength: 8 }), draw.int(0, 2_000_000)]),
  ([id, choices, place]) => {
    const [limit, order, from, to, after, position, again, name] = choices as [
      number,
      number,
      number,
      number,
      number,
      number,
      number,
      number,
    ]
    const members = [name % 8 === 0 ? `${escaped("id")}:${id}` : `"id":${id}`]
    const add = (when: boolean, member: string) => {
      if (when) members.push(member)
    }
    add(limit % 2 === 0, `"limit":${limit % 7 === 0 ? `${1 + (limit % 50)}e0` : 1 + (limit % 50)}`)
    add(order % 3 === 0, `"order":"${order % 2 === 0 ? "asc" : "desc"}"`)
    add(from % 6 === 0, `"from":${from % 4 === 0 ? Number.MAX_SAFE_INTEGER - from : from}`)
    add(to % 6 === 0, `"to":${to % 4 === 0 ? Number.MAX_SAFE_INTEGER - to : to}`)
    const kind = (["asc", "desc", "position"] as const)[after % 3]!
    const cursor =
      kind === "position"
        ? { order: kind, position: place }
        : { order: kind, timestamp: BigInt(place) * 1_000_000_000_000n, seq: place }
    // One in eleven is of another object.
    const owner = (after % 11 === 0 ? id ^ 1n : id) as ObjectId
    add(after % 4 === 0, `"after":"${cursorText(owner, cursor)}"`)
    add(position % 7 === 0, `"after_position":${position}`)
    add(again % 6 === 0, `"id":${again % 2 === 0 ? id : "1.5"}`)
    add(again % 5 === 0, `"request_id":"r${again}"`)
    return Buffer.from(`{${members.join(",")}}`)
  },
)

export const appends = Arbitrary.map(spelledFor(ids), ({ text }) => Buffer.from(text))

/** A payload, and what a slow decoder should judge in place of one that is nested too deeply for it. */
type Shaped = Buffer | { readonly payload: Buffer; readonly judged: Buffer }

export interface PayloadInput {
  readonly valid: Buffer
  readonly other: Buffer
  readonly steps: Parameters<typeof damaged>[1]
  readonly choose: Choices
  readonly subject: "logs" | "query"
  readonly maxPayload: number
  readonly number: number
}

const inside = (valid: Buffer, member: string): Buffer => {
  const at = valid.lastIndexOf("}")
  return Buffer.concat([valid.subarray(0, at), Buffer.from(`,${member}`), valid.subarray(at)])
}

const hugeNumbers = [
  "1e400",
  "-1e400",
  "1e-400",
  "-0",
  "0.0",
  "1.5",
  "1e3",
  "9007199254740993",
  "18446744073709551615",
  "18446744073709551616",
  "9".repeat(1_000),
  `0.${"1".repeat(500)}`,
  "1E+2",
  "-1",
  "00",
  "0x10",
  "1_000",
  "NaN",
  "Infinity",
]

export const payloadShapes: ReadonlyArray<
  readonly [name: string, weight: number, make: (input: PayloadInput) => Shaped]
> = [
  ["valid", 400, ({ valid }) => valid],
  ["damaged", 150, ({ steps, valid }) => damaged(valid, steps)],
  [
    "bit flips",
    80,
    ({ choose, valid }) => {
      const flipped = Buffer.from(valid)
      for (let i = 0; i <= choose.next(3); i++) {
        const at = choose.next(flipped.length)
        flipped[at] = flipped[at]! ^ (1 << choose.next(8))
      }
      return flipped
    },
  ],
  ["truncated", 50, ({ choose, valid }) => valid.subarray(0, choose.next(valid.length))],
  [
    "spliced",
    50,
    ({ choose, other, valid }) =>
      Buffer.concat([valid.subarray(0, choose.next(valid.length + 1)), other.subarray(choose.next(other.length + 1))]),
  ],
  [
    "doubled",
    10,
    ({ choose, valid }) => Buffer.concat([valid, choose.pick([valid, Buffer.from("\n"), Buffer.from(",")])]),
  ],
  [
    "not UTF-8",
    40,
    ({ choose, valid }) => {
      const at = choose.next(valid.length + 1)
      const odd = choose.pick([
        [0xff],
        [0xc0, 0x80],
        [0xed, 0xa0, 0x80],
        [0xf5, 0x80, 0x80, 0x80],
        [0xc3],
        [0xe2, 0x82],
        [0x80],
      ])
      return Buffer.concat([valid.subarray(0, at), Buffer.from(odd), valid.subarray(at)])
    },
  ],
  [
    "deeply nested",
    15,
    ({ choose, valid }) => {
      const open = choose.pick([1, 100, 5_000, 100_000])
      const close = choose.pick([open, open, open, open - 1, open + 1])
      const [left, right] = choose.pick([
        ["[", "]"],
        ['{"id":', "}"],
      ] as const)
      const nested = (a: number, b: number) =>
        inside(valid, `"x":${left.repeat(a)}${left === "[" ? "" : "1"}${right.repeat(b)}`)
      return { payload: nested(open, close), judged: nested(1, 1 + close - open) }
    },
  ],
  [
    "huge numbers",
    40,
    ({ choose, subject, valid }) => {
      const name = choose.pick(
        subject === "logs" ? ["id", "x", "log"] : ["id", "limit", "from", "to", "after_position"],
      )
      return inside(valid, `"${name}":${choose.pick(hugeNumbers)}`)
    },
  ],
  [
    "repeated keys",
    40,
    ({ choose, valid }) => {
      const members = ['"id":7', '"id":"7"', '"id":null', '"log":"x"', '"log":7', '"request_id":"r"', '"request_id":""']
      return inside(valid, Array.from({ length: 1 + choose.next(3) }, () => choose.pick(members)).join(","))
    },
  ],
  [
    "escaped keys",
    30,
    ({ choose, valid }) => {
      const value = choose.pick(["7", '"7"', "null", "18446744073709551615"])
      const name = choose.pick([
        '"\\u0069d"',
        '"i\\u0064"',
        '"\\u0069\\u0064"',
        '"\\u0049d"',
        '"id\\u0000"',
        '"\\u006Cog"',
      ])
      return inside(valid, `${name}:${value}`)
    },
  ],
  [
    "keys of prototypes",
    30,
    ({ choose, valid }) => {
      const name = choose.pick([
        "__proto__",
        "constructor",
        "prototype",
        "toString",
        "hasOwnProperty",
        "\\u005f_proto__",
      ])
      const value = choose.pick(['{"id":1,"log":"x"}', "null", '{"limit":-1,"reply_to":"logs"}', "[]"])
      return choose.next(2) === 0 ? inside(valid, `"${name}":${value}`) : Buffer.from(`{"${name}":${value}}`)
    },
  ],
  ["byte order mark", 10, ({ valid }) => Buffer.concat([Buffer.from([0xef, 0xbb, 0xbf]), valid])],
  ["empty", 10, ({ choose }) => Buffer.from(choose.pick(["", " ", "\n", "\0", "\t\r\n ", "\u00a0"]))],
  ["random bytes", 30, ({ choose }) => choose.bytes(1 + choose.next(300))],
  [
    "other JSON",
    30,
    ({ choose, valid }) => {
      const whole = choose.pick(["[]", "null", "true", "7", '"x"', "{}", "[{}]", '{"":{}}', "[1e999]", "-", "nul"])
      return choose.next(4) === 0 ? Buffer.concat([Buffer.from("["), valid, Buffer.from("]")]) : Buffer.from(whole)
    },
  ],
  [
    "wrong types",
    40,
    ({ choose, subject, valid }) => {
      const values = ["null", "true", "[]", "{}", '""', '"x"', "-1", "1.5", '"_INBOX.a"', '"response.>"', '"\\ud800"']
      const names =
        subject === "logs"
          ? ["id", "log", "request_id", "reply_to"]
          : ["id", "limit", "from", "to", "order", "after", "after_position", "request_id", "reply_to"]
      return inside(valid, `"${choose.pick(names)}":${choose.pick(values)}`)
    },
  ],
  [
    "as large as can be",
    2,
    ({ choose, maxPayload, number, subject }) => {
      const garbage = choose.pick(["x", "[", '"', "\\", " ", "\u0000"]).repeat(maxPayload)
      if (choose.next(2) === 0) return { payload: Buffer.from(garbage), judged: Buffer.from("[[x") }
      // Around the limit of a log, on objects that nobody else uses, so that reads stay small.
      const length = maxPayload - 2_048 - 2 - 2 + choose.next(4)
      const head = `{"id":${10n ** 15n + BigInt(number)},"${subject === "logs" ? "log" : "x"}":"`
      return Buffer.from(`${head}${"x".repeat(length)}"}`)
    },
  ],
]
