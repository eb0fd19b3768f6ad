/** An inbox gets its messages, by the fast way and, where that fails, by the client library's own. */
import { assert, describe, it, layer } from "@effect/vitest"
import { headers, type NatsConnection, type Subscription } from "@nats-io/transport-node"
import { Effect } from "effect"
import { Buffer } from "node:buffer"
import { NatsServer } from "../../src/embedded/NatsServer.ts"
import { Inbox } from "../../src/nats/Inbox.ts"
import { Incoming } from "../../src/nats/Incoming.ts"
import { insideProblem } from "../../src/nats/inside.ts"
import { parseStatus } from "../../src/nats/status.ts"
import { TestNats } from "../../bench/servers/privateServers.ts"
import { connectTo } from "../../bench/servers/connectTo.ts"

/** What becomes of the fast way in a library whose inside has changed unnoticed: it sees nothing. */
const blind = { listen: () => undefined, forget: () => undefined } as unknown as Incoming

layer(TestNats.layer, { excludeTestServices: true })("Inbox", (it) => {
  const connection = Effect.gen(function* () {
    const { url } = yield* NatsServer
    return yield* Effect.acquireRelease(
      Effect.promise(() => connectTo(url)),
      (nc) => Effect.promise(() => nc.close()),
    )
  })

  it.effect("gets the same by either way: subject, reply, headers, text, bytes, and the server's status", () =>
    Effect.gen(function* () {
      const seen: Array<ReadonlyArray<unknown>> = []
      for (const makeIncoming of [(nc: NatsConnection) => new Incoming(nc), () => blind]) {
        const nc = yield* connection
        const messages: Array<readonly [string, string, string, string | Uint8Array]> = []
        const inbox = new Inbox(
          nc,
          makeIncoming(nc),
          (...message) => messages.push(message),
          (text) => assert.fail(text),
        )
        inbox.open()
        const own = headers()
        own.append("x", "é")
        own.append("y", "1")
        own.append("x", "2")
        nc.publish(`${inbox.subject}.1`, "täxt", { headers: own, reply: "answer.here" })
        nc.publish(`${inbox.subject}.2`, Buffer.from([0xff, 0x00]))
        nc.publish(`${inbox.subject}.3`, "")
        // Nobody listens there: the server answers with a status.
        nc.publish("nobody.listens", "", { reply: `${inbox.subject}.4` })
        yield* Effect.promise(() => nc.flush())
        yield* Effect.promise(() => nc.flush())
        seen.push(
          messages.map(([subject, reply, block, payload]) => [
            subject.slice(inbox.subject.length),
            reply,
            block.toLowerCase().split("\r\n").toSorted(),
            payload,
          ]),
        )
        assert.lengthOf(messages, 4)
        assert.strictEqual(parseStatus(messages[3]![2])?.code, 503)
        inbox.close()
      }
      assert.deepStrictEqual(seen[0], seen[1])
    }),
  )

  it.effect("gives text wherever bytes are text", () =>
    Effect.gen(function* () {
      const nc = yield* connection
      const payloads: Array<string | Uint8Array> = []
      const inbox = new Inbox(
        nc,
        new Incoming(nc),
        (...message) => payloads.push(message[3]),
        (text) => assert.fail(text),
      )
      inbox.open()
      // In one piece with a long one.
      nc.publish(`${inbox.subject}.1`, "x".repeat(20_000))
      nc.publish(`${inbox.subject}.2`, "a replacement \ufffd of the sender's own")
      nc.publish(`${inbox.subject}.3`, Buffer.from([0xff, 0x00, 0xfe]))
      yield* Effect.promise(() => nc.flush())
      assert.strictEqual(payloads[1], "a replacement \ufffd of the sender's own")
      assert.deepStrictEqual([...(payloads[2] as Uint8Array)], [0xff, 0x00, 0xfe])
      inbox.close()
    }),
  )

  it.effect("relies on an inside that this library has", () =>
    Effect.gen(function* () {
      assert.isUndefined(insideProblem(yield* connection))
    }),
  )
})

it("bytes that are no text are a copy: whoever keeps them would keep the piece", () => {
  const protocol = { parser: { parse: (bytes: Uint8Array) => void assert.fail(String(bytes)) } }
  const incoming = new Incoming({ protocol } as unknown as NatsConnection)
  const kept: Array<string | Uint8Array> = []
  incoming.listen({ getID: () => 1 } as Subscription, (_, __, ___, payload) => kept.push(payload))
  const piece = Buffer.from("MSG subject 1 3\r\n\u00ff\u0000\u00fe\r\n", "latin1")
  protocol.parser.parse(piece)
  piece.fill(0)
  assert.deepStrictEqual([...(kept[0] as Uint8Array)], [0xff, 0x00, 0xfe])
})

describe("insideProblem", () => {
  it("names what is missing", () => {
    const problem = (inside: object) => insideProblem(inside as NatsConnection) ?? ""
    assert.include(problem({}), "has no protocol.parser.parse and no protocol.sendCommand, which")
    assert.include(problem({ protocol: { sendCommand: () => undefined } }), "has no protocol.parser.parse, which")
    assert.include(problem({ protocol: { parser: { parse: () => undefined } } }), "has no protocol.sendCommand, which")
  })
})
