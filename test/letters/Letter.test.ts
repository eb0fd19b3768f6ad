/** Dead letters put together from the messages of their stream. */
import { assert, describe, it } from "@effect/vitest"
import { foreignCode, LetterAssembly, type StoredMessage } from "../../src/letters/Letter.ts"

const own = (id: string) =>
  `NATS/1.0\r\nObjectlog-Code: invalid_json\r\nObjectlog-Reason: why\r\nObjectlog-Subject: logs\r\nObjectlog-Seq: 3\r\nObjectlog-Timestamp: 99\r\nNats-Msg-Id: ${id}\r\n`

const message = (seq: number, headers: string, payload: string): StoredMessage => ({
  seq,
  timestamp: BigInt(seq),
  subject: "dead.logs",
  headers: `${headers}\r\n`,
  payload: Buffer.from(payload),
})

const part = (seq: number, number: number, payload: string, prefix = "") =>
  message(
    seq,
    `${own(`${prefix}logs-3-99-${number}`)}Objectlog-Part: ${number}/2\r\nObjectlog-Headers-Size: 13\r\n`,
    payload,
  )

const block = '[["a",["b"]]]'

describe("LetterAssembly", () => {
  it("a letter in one message whose request looks like a part of another one", () => {
    const mine = "Objectlog-Part: 1/2\r\nObjectlog-Headers-Size: 13\r\n"
    const letter = new LetterAssembly().accept(message(7, `${own("logs-3-99")}${mine}`, "body"))!
    assert.strictEqual(Buffer.from(letter.payload).toString(), "body")
    assert.deepStrictEqual(letter.headers, [
      ["Objectlog-Part", "1/2"],
      ["Objectlog-Headers-Size", "13"],
    ])
  })

  it("a letter in one message, with the names that its request had", () => {
    const letter = new LetterAssembly().accept(
      message(7, `${own("logs-3-99")}Original-Nats-X: 1\r\nObjectlog-Part: 1/2\r\nObjectlog-Code: mine\r\n`, "body"),
    )!
    assert.deepInclude(letter, { seq: 7, seqs: [7], code: "invalid_json", reason: "why", missingParts: 0 })
    assert.deepStrictEqual(letter.stamp, { seq: 3, timestamp: 99n })
    assert.deepStrictEqual(letter.headers, [
      ["Nats-X", "1"],
      ["Objectlog-Part", "1/2"],
      ["Objectlog-Code", "mine"],
    ])
  })

  it("parts among others, in any order, one of them twice", () => {
    const assembly = new LetterAssembly()
    assert.isUndefined(assembly.accept(part(1, 2, "dy")))
    assert.strictEqual(assembly.accept(message(2, own("logs-3-99"), "other"))!.seq, 2)
    assert.isUndefined(assembly.accept(part(3, 2, "dy")))
    const letter = assembly.accept(part(4, 1, `${block}bo`))!
    assert.deepInclude(letter, { seq: 1, seqs: [1, 3, 4], missingParts: 0 })
    assert.deepStrictEqual(letter.headers, [["a", "b"]])
    assert.strictEqual(Buffer.from(letter.payload).toString(), "body")
    assert.deepStrictEqual(assembly.rest(), [])
  })

  it("what was refused again after a retry is another letter", () => {
    const assembly = new LetterAssembly()
    assembly.accept(part(1, 1, `${block}bo`))
    assert.isUndefined(assembly.accept(part(2, 2, "dy", "5-77-")))
    assert.deepStrictEqual(assembly.accept(part(3, 1, `${block}bo`, "5-77-"))!.seqs, [2, 3])
    assert.deepStrictEqual(
      assembly.rest().map(({ missingParts, payload, seqs }) => [seqs, missingParts, payload.byteLength]),
      [[[1], 1, 0]],
    )
  })

  it("what is not ours is foreign, or a letter that lacks something; never a failure", () => {
    for (const headers of [
      "",
      "NATS/1.0\r\n",
      own("logs-3-99").replace("Objectlog-Seq: 3", "Objectlog-Seq: x"),
      own("x"),
    ]) {
      const letter = new LetterAssembly().accept(message(1, headers, "x"))!
      assert.deepInclude(letter, { code: foreignCode, subject: "dead.logs", stamp: undefined, missingParts: 0 })
    }
    for (const [first, second] of [
      [part(1, 1, "no JSON, tho"), part(2, 2, "ugh")],
      [part(1, 1, block), part(2, 7, "")],
    ] as const) {
      const assembly = new LetterAssembly()
      assembly.accept(first)
      assert.isAbove(assembly.accept(second)!.missingParts, 0)
    }
  })
})
