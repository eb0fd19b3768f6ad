/** The fuzzer's check finds each kind of fault. */
import { assert, describe, it } from "@effect/vitest"
import type { Letter } from "../../src/letters/Letter.ts"
import { type Body, checkAll, type Row } from "./check.ts"
import { digest, expect } from "./expect.ts"
import type { Sent } from "./Sent.ts"

const limits = { maxPayload: 1_048_576, responseTopic: "response" }

const sentOf = (subject: "logs" | "query", seq: number, text: string, block?: string): Sent => {
  const payload = Buffer.from(text)
  const message = { subject, payloadKind: "p", headersKind: "h", payload, judged: payload }
  return {
    expected: expect({ ...message, block: block === undefined ? undefined : Buffer.from(block) }, limits),
    seq,
    reason: "",
  }
}

const idBlock = (id: string) => `NATS/1.0\r\nNats-Msg-Id: ${id}\r\n\r\n`

interface World {
  sent: Array<Sent>
  events: Map<string, Array<Body>>
  letters: Array<Letter>
  rows: Map<number, Row>
}

/** Two entries, a duplicate of the second, a refused append, and a read of it all. */
const world = (): World => {
  const row = (position: number, text: string): Row => ({
    id: 5n,
    timestamp: BigInt(position) * 1_000_000n,
    position,
    log: digest(JSON.stringify(text)),
  })
  const appended = (position: number): Body => ({
    type: "append",
    status: "ok",
    idText: "5",
    position,
    seq: position,
    timestamp: position,
  })
  const entry = (position: number, log: string) => ({ position, seq: position, timestamp: position, log })
  return {
    sent: [
      sentOf("logs", 1, '{"id":5,"log":"a"}'),
      sentOf("logs", 2, '{"id":5,"log":"b"}', idBlock("m")),
      sentOf("logs", 3, '{"id":5,"log":"c"}', idBlock("m")),
      sentOf("logs", 4, '{"id":5,"log":7}', "NATS/1.0\r\nx: y\r\n\r\n"),
      sentOf("query", 1, '{"id":5}'),
    ],
    events: new Map([
      ["logs 1", [appended(1)]],
      ["logs 2", [appended(2)]],
      ["logs 3", [{ ...appended(2), duplicate: true }]],
      ["logs 4", [{ type: "append", status: "error", idText: "5", error: { code: "invalid_message" } }]],
      [
        "query 1",
        [
          { type: "query", status: "ok", idText: "5", page: 0, last: false, entries: [entry(1, "a")] },
          { type: "query", status: "ok", idText: "5", page: 1, last: true, entries: [entry(2, "b")] },
        ],
      ],
    ]),
    letters: [
      {
        seq: 1,
        seqs: [1],
        refusedAt: 0n,
        code: "invalid_message",
        reason: "",
        subject: "logs",
        stamp: { seq: 4, timestamp: 4n },
        headers: [["x", "y"]],
        payload: Buffer.from('{"id":5,"log":7}'),
        missingParts: 0,
      },
    ],
    rows: new Map([
      [1, row(1, "a")],
      [2, row(2, "b")],
    ]),
  }
}

const problemsOf = ({ events, letters, rows, sent }: World) => checkAll(sent, events, letters, rows).problems

const faults: Readonly<Record<string, (world: World) => void>> = {
  "an append without an event": ({ events }) => void events.delete("logs 1"),
  "two events": ({ events }) => void events.get("logs 1")!.push(events.get("logs 1")![0]!),
  "a lost entry": ({ rows }) => void rows.delete(1),
  "both of two with one message id": ({ rows }) =>
    void rows.set(3, { ...rows.get(2)!, position: 3, timestamp: 9n ** 9n }),
  "another text": ({ rows }) => void rows.set(1, { ...rows.get(1)!, log: "x" }),
  "another object": ({ rows }) => void rows.set(1, { ...rows.get(1)!, id: 6n }),
  "a gap": ({ rows }) => void rows.set(2, { ...rows.get(2)!, position: 3 }),
  "timestamps against the order": ({ rows }) => void rows.set(2, { ...rows.get(2)!, timestamp: 1n }),
  "a refused append without a dead letter": ({ letters }) => void letters.pop(),
  "two dead letters": ({ letters }) => void letters.push(letters[0]!),
  "a dead letter with another payload": ({ letters }) =>
    void (letters[0] = { ...letters[0]!, payload: Buffer.from("x") }),
  "a dead letter without its headers": ({ letters }) => void (letters[0] = { ...letters[0]!, headers: [] }),
  "another code": ({ letters }) => void (letters[0] = { ...letters[0]!, code: "invalid_json" }),
  "a refused append that is stored": ({ rows }) =>
    void rows.set(4, { ...rows.get(1)!, position: 3, timestamp: 9n ** 9n }),
  "a valid append that is refused": ({ events }) => void events.set("logs 1", events.get("logs 4")!),
  "a missing page": ({ events }) => void events.get("query 1")!.shift(),
  "no last page": ({ events }) => void events.get("query 1")!.pop(),
  "pages out of order": ({ events }) => void events.get("query 1")!.reverse(),
  "an event of nothing": ({ events }) => void events.set("logs 9", events.get("logs 1")!),
  "an entry of nothing": ({ rows }) => void rows.set(9, { ...rows.get(1)!, position: 3, timestamp: 9n ** 9n }),
}

describe("the fuzzer's check", () => {
  it("has nothing to say of a right outcome", () => {
    assert.deepStrictEqual(problemsOf(world()), [])
  })

  for (const [name, break_] of Object.entries(faults)) {
    it(`finds ${name}`, () => {
      const broken = world()
      break_(broken)
      assert.isNotEmpty(problemsOf(broken))
    })
  }
})
