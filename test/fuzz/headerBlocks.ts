/** Header blocks of many kinds, as bytes: a client library would refuse to send a good part of them. */
import type { Choices } from "./choices.ts"

const hex = (choose: Choices, count: number) => choose.bytes(count).toString("hex")

/** `id` is used by this message alone, `shared` by others too. */
interface HeadersInput {
  readonly choose: Choices
  readonly id: string
  readonly shared: string
}

type Line = string | Buffer

const lines = (...all: ReadonlyArray<Line>): Buffer =>
  Buffer.concat([
    Buffer.from("NATS/1.0\r\n"),
    ...all.flatMap((line) => [typeof line === "string" ? Buffer.from(line) : line, Buffer.from("\r\n")]),
    Buffer.from("\r\n"),
  ])

const bytesOf = (...parts: ReadonlyArray<string | ReadonlyArray<number>>): Buffer =>
  Buffer.concat(parts.map((part) => (typeof part === "string" ? Buffer.from(part) : Buffer.from(part))))

export const headerShapes: ReadonlyArray<
  readonly [name: string, weight: number, make: (input: HeadersInput) => Buffer | undefined]
> = [
  ["none", 500, () => undefined],
  ["no lines", 10, () => lines()],
  [
    "traceparent",
    80,
    ({ choose }) => {
      const [trace, span] = [hex(choose, 16), hex(choose, 8)]
      const parent = choose.pick([
        `00-${trace}-${span}-01`,
        `00-${trace}-${span}-01`,
        `ff-${trace}-${span}-01`,
        `00-${"0".repeat(32)}-${span}-01`,
        `00-${trace.toUpperCase()}-${span}-01`,
        `00-${trace}-${span}`,
        `00-${trace}-${span}-01-${"x".repeat(5_000)}`,
        `00-${trace}${span}-01-`,
        "",
        "-",
        "\u0000",
        "é",
      ])
      return lines(
        `traceparent: ${parent}`,
        ...(choose.next(2) === 0 ? [`tracestate: ${"a=b,".repeat(choose.next(300))}`] : []),
      )
    },
  ],
  [
    "traceparent of odd bytes or twice",
    30,
    ({ choose }) =>
      lines(
        Buffer.concat([Buffer.from("traceparent: "), Buffer.from(choose.bytes(55).map((byte) => byte | 0x80))]),
        "traceparent: 00-1-2-3",
        Buffer.concat([Buffer.from("tracestate: "), Buffer.from(choose.bytes(55).map((byte) => byte | 0x10))]),
      ),
  ],
  ["message id", 100, ({ id }) => lines(`Nats-Msg-Id: ${id}`)],
  ["message id of others too", 60, ({ shared }) => lines(`Nats-Msg-Id: ${shared}`)],
  ["message id, empty", 20, ({ choose }) => lines(`Nats-Msg-Id:${choose.pick(["", " ", " \t "])}`)],
  [
    "message id with spaces and signs",
    20,
    ({ choose, id }) =>
      lines(
        `Nats-Msg-Id: ${choose.pick([`${id} ${id}`, `  ${id}\t`, `"${id}"`, `${id}: x`, `'${id}' --`, `é${id}漢`])}`,
      ),
  ],
  [
    "message id, 1,024 bytes",
    10,
    ({ choose, id }) => lines(`Nats-Msg-Id: ${id.padEnd(1_024, choose.pick(["x", "7"]))}`),
  ],
  ["message id, 1,025 bytes", 10, ({ id }) => lines(`Nats-Msg-Id: ${id.padEnd(1_025, "x")}`)],
  ["message id, 60,000 bytes", 3, ({ id }) => lines(`Nats-Msg-Id: ${id.padEnd(30_000, "é")}`)],
  [
    "message id, not UTF-8",
    20,
    ({ choose, id }) =>
      lines(bytesOf("Nats-Msg-Id: ", id, choose.pick([[0xff], [0xfe], [0xc3], [0xa0], [0xed, 0xa0, 0x80]]))),
  ],
  [
    "message id with control characters",
    20,
    ({ choose, id }) =>
      lines(bytesOf("Nats-Msg-Id: ", id, choose.pick([[0], [1], [0x7f], [0x0a], [0x0d], [0x1b, 0x5b]]), "x")),
  ],
  ["message id twice", 20, ({ id }) => lines(`Nats-Msg-Id: ${id}`, `Nats-Msg-Id: ${id}-second`)],
  [
    "message id in other letters",
    10,
    ({ id }) => lines(`nats-msg-id: ${id}`, `NATS-MSG-ID: ${id}`, `Nats-Msg-Id : ${id}`),
  ],
  [
    "the broker acts on it",
    30,
    ({ choose, id }) =>
      lines(
        choose.pick([
          "Nats-Expected-Stream: objectlog_logs",
          "Nats-Expected-Stream: other",
          "Nats-Expected-Last-Sequence: 1",
          "Nats-Expected-Last-Sequence: x",
          "Nats-Expected-Last-Msg-Id: none",
          "Nats-Expected-Last-Subject-Sequence: 1",
          "Nats-Rollup: sub",
          "Nats-Rollup: all",
          "Nats-Rollup: x",
          "Nats-TTL: 1s",
          "Nats-TTL: never",
          "Nats-TTL: -1",
          `Nats-Batch-Id: ${id}`,
          "Nats-Incr: 1",
          "Nats-Marker-Reason: MaxAge",
          "Nats-Required-Api-Level: 99",
          "Nats-Schedule: @every 1s",
          "Nats-Stream-Source: x 1 > >",
          "Nats-Response-Type: x",
          "Status: 503",
        ]),
      ),
  ],
  [
    "names of our own",
    30,
    ({ choose }) =>
      lines(
        ...[
          "Objectlog-Code: ok",
          "Objectlog-Reason: none",
          "Objectlog-Subject: query",
          "Objectlog-Seq: 1",
          "Objectlog-Timestamp: 1",
          "Objectlog-Part: 1/2",
          "Objectlog-Headers-Size: 2",
          "Objectlog-Original-Seq: 1",
          "Original-Nats-Msg-Id: x",
          "original-nats-msg-id: y",
          "Original-Original-Nats-X: z",
        ].slice(choose.next(10)),
      ),
  ],
  [
    "odd names and values",
    30,
    ({ choose }) =>
      lines(
        choose.pick<Line>([
          "with space: x",
          ": no name",
          "no value:",
          "no colon",
          "a:b:c",
          "\u0000: x",
          bytesOf([0xff], ": ", [0xfe]),
          "é: ü",
          " leading: x",
          "folded: a\r\n b",
          "__proto__: x",
          "constructor: x",
          "x: a\nb",
          "x: a\rb",
        ]),
      ),
  ],
  [
    "no block at all",
    20,
    ({ choose }) => {
      const id = "Nats-Msg-Id"
      return Buffer.from(
        choose.pick([
          "\r\n\r\n",
          "garbage",
          "NATS/1.0",
          "NATS/1.0\r\n",
          `NATS/1.0\r\n${id}`,
          "NATS/1.0 503\r\n\r\n",
          "NATS/1.0 100 Idle Heartbeat\r\n\r\n",
          "NATS/1.0 409 Consumer Deleted\r\n\r\n",
          "NATS/2.0\r\nx: y\r\n\r\n",
          "x: y\r\n\r\n",
          "\u0000",
          "NATS/1.0\nx: y\n\n",
          "NATS/1.0\r\n\r\nx: y\r\n\r\n",
          "HTTP/1.1 200 OK\r\nx: y\r\n\r\n",
        ]),
      )
    },
  ],
  [
    "many lines",
    10,
    ({ choose }) => lines(...Array.from({ length: 500 }, (_, at) => `x${at % choose.pick([1, 500])}: ${at}`)),
  ],
  ["60,000 bytes", 5, ({ choose }) => lines(`x: a${choose.pick(["y", " ", "\t"]).repeat(60_000)}z`)],
  ["more than the broker takes", 2, ({ choose }) => lines(`x: ${"y".repeat(choose.pick([66_000, 900 * 1_024]))}`)],
]
