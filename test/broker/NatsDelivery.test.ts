/** What is kept for long is parted from what it arrived with: measured in the heap, so in a process of its own. */
import { assert, describe, it } from "@effect/vitest"
import { setFlagsFromString } from "node:v8"
import { runInNewContext } from "node:vm"
import { NatsDelivery } from "../../src/broker/NatsDelivery.ts"
import { StreamLives } from "../../src/broker/StreamLife.ts"
import { ObjectId } from "../../src/contract/ObjectId.ts"
import { Work } from "../../src/pipeline/Waiting.ts"

setFlagsFromString("--expose-gc")
const collect = runInNewContext("gc") as () => void

const heldMiB = () => {
  collect()
  return process.memoryUsage().heapUsed / 1024 ** 2
}

/** One delivery of a sure stream, and what is answered. */
const headers = "NATS/1.0\r\nx: y\r\n\r\n"
const make = (payload: string | Uint8Array = "täxt") => {
  const answers: Array<string> = []
  const found = { name: "objectlog_logs", created: "2026-01-01T00:00:00Z" }
  const streams = new StreamLives(found, () => true, { answer: (_, answer) => void answers.push(answer) })
  const reply = "$JS.ACK.objectlog_logs.objectlog.1.7.7.1763922300000000000.0"
  return { answers, delivery: new NatsDelivery("logs", reply, headers, payload, streams, false) }
}

describe("a delivery", () => {
  it("appends that are kept for long do not keep the pieces in which they arrived", () => {
    const found = { name: "objectlog_logs", created: "2026-01-01T00:00:00Z" }
    const streams = new StreamLives(found, () => true, { answer: () => undefined })
    const works: Array<Work> = []
    const before = heldMiB()
    for (let i = 0; i < 1_000; i++) {
      const log = `log ${i} of a shard that is down`.padEnd(100, ".")
      const head = `NATS/1.0\r\nNats-Msg-Id: message ${i} of somebody\r\n\r\n`
      // A piece of the protocol: all else in it is settled soon.
      const piece = Buffer.from(
        `${head}{"id":7,"log":"${log}","request_id":"request ${i} of somebody"}`.padEnd(64 * 1024),
      )
      const text = piece.toString("latin1")
      const payload = text.slice(head.length, text.indexOf("}") + 1)
      const reply = `$JS.ACK.objectlog_logs.objectlog.1.${i + 1}.${i + 1}.1763922300000000000.0`
      const delivery = new NatsDelivery("logs", reply, text.slice(0, head.length), payload, streams, false)
      const entry = {
        id: ObjectId.make(7n),
        timestamp: delivery.timestamp,
        seq: delivery.seq,
        log: payload.slice(15, 115),
        messageId: delivery.header("Nats-Msg-Id"),
        redelivered: false,
      }
      works.push(
        new Work("intake", delivery, entry, {
          requestId: /"request_id":"([^"]*)"/.exec(payload)![1],
          replyTo: undefined,
        }),
      )
    }
    assert.isAbove(heldMiB() - before, 50)
    for (const work of works) work.detach()
    assert.isBelow(heldMiB() - before, 5)
    for (const [i, { delivery, entry, requestId }] of works.entries()) {
      assert.strictEqual(entry.log, `log ${i} of a shard that is down`.padEnd(100, "."))
      assert.strictEqual(entry.messageId, `message ${i} of somebody`)
      assert.strictEqual(requestId, `request ${i} of somebody`)
      assert.strictEqual(delivery.header("Nats-Msg-Id"), entry.messageId)
      assert.include(delivery.text, entry.log)
    }
  })

  it("says how many bytes it holds: a text takes up to two for each character", () => {
    const { delivery } = make()
    assert.strictEqual(delivery.heldBytes, headers.length + 2 * "täxt".length)
    assert.strictEqual(make(Buffer.from([0xff, 0xfe, 0xfd])).delivery.heldBytes, headers.length + 3)
  })

  it("is settled once; afterwards nothing keeps it alive", () => {
    const { answers, delivery } = make()
    delivery.working()
    delivery.ack()
    delivery.ack()
    delivery.retry(5)
    delivery.working()
    assert.deepStrictEqual(answers, ["+WPI", "+ACK"])
  })

  it("is handed back after a moment at least", () => {
    for (const [wanted, nanos] of [
      [0, 100_000_000],
      [2_500, 2_500_000_000],
    ] as const) {
      const { answers, delivery } = make()
      delivery.retry(wanted)
      assert.deepStrictEqual(answers, [`-NAK {"delay":${nanos}}`])
    }
  })
})
