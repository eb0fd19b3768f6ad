/** What Outgoing writes reaches a server as the client library's own messages would: byte for byte, and in order with them. */
import { assert, layer } from "@effect/vitest"
import { createInbox, type Msg } from "@nats-io/transport-node"
import { Effect } from "effect"
import { NatsServer } from "../../src/embedded/NatsServer.ts"
import { blockText, type HeaderBlock, headerText } from "../../src/nats/headers.ts"
import { Outgoing } from "../../src/nats/Outgoing.ts"
import { TestNats } from "../../bench/servers/privateServers.ts"
import { connectTo } from "../../bench/servers/connectTo.ts"

const connected = Effect.flatMap(NatsServer, (nats) =>
  Effect.acquireRelease(
    Effect.promise(() => connectTo(nats.url)),
    (connection) => Effect.promise(() => connection.close()),
  ),
)

interface Sent {
  readonly subject: string
  readonly reply?: string
  readonly headers: HeaderBlock
  readonly payload: string | Uint8Array
}

const received = ({ data, reply, subject, ...message }: Msg & { headersText: string }) => ({
  subject,
  reply,
  headers: message.headersText,
  payload: Buffer.from(data).toString("latin1"),
})

layer(TestNats.layer, { excludeTestServices: true })("Outgoing", (it) => {
  it.effect("writes headers and payload as they are, whatever they hold, and keeps the order of all that is sent", () =>
    Effect.gen(function* () {
      const connection = yield* connected
      const outgoing = new Outgoing(connection)
      const subject = createInbox()
      const messages: Array<ReturnType<typeof received>> = []
      connection.subscribe(`${subject}.>`, {
        callback: (_, message) => {
          const headersText = headerText(message, message.reply?.length ?? 0)
          messages.push(received(Object.assign(Object.create(message) as Msg, { headersText })))
        },
      })
      const block = blockText([["Nats-Msg-Id", "logs-1-2"]])
      const all: ReadonlyArray<Sent> = [
        { subject: `${subject}.a`, reply: "_INBOX.x.1", headers: block, payload: '{"id":1}' },
        { subject: `${subject}.b`, headers: block, payload: "" },
        { subject: `${subject}.c`, headers: block, payload: '{"request_id":"ä 漢 😀 \\u0000"}' },
        { subject: `${subject}.d`, headers: blockText([["x", "\u00ff\u00e4"]]), payload: "ä" },
        { subject: `${subject}.e`, reply: "r.1", headers: block, payload: Uint8Array.from([0, 255, 13, 10]) },
        ...Array.from({ length: 2_000 }, (_, i) => ({
          subject: `${subject}.${i}`,
          headers: block,
          payload: `${i} ${"x".repeat(100)}`,
        })),
      ]
      for (const [i, sent] of all.entries()) {
        outgoing.publish(sent.subject, sent.reply, sent.headers, sent.payload)
        if (i % 500 === 0) outgoing.answer(`${subject}.answer`, "+ACK")
      }
      // What is sent later by the library itself comes behind.
      yield* Effect.promise(() => Promise.resolve())
      connection.publish(`${subject}.last`, "last")
      yield* Effect.promise(() => connection.flush())

      const expected = all.flatMap(({ headers, payload, reply, subject: to }, i) => [
        { subject: to, reply: reply ?? "", headers, payload: Buffer.from(payload as string).toString("latin1") },
        ...(i % 500 === 0 ? [{ subject: `${subject}.answer`, reply: "", headers: "", payload: "+ACK" }] : []),
      ])
      assert.deepStrictEqual(messages, [
        ...expected,
        { subject: `${subject}.last`, reply: "", headers: "", payload: "last" },
      ])
    }).pipe(Effect.scoped),
  )

  it.effect("refuses what the server would close the connection for, what is no subject, and a closed connection", () =>
    Effect.gen(function* () {
      const connection = yield* connected
      const outgoing = new Outgoing(connection)
      const allowed = connection.info!.max_payload
      const none = blockText([])
      const send = (size: number) => outgoing.publish("large", undefined, none, new Uint8Array(size - none.length))
      send(allowed)
      assert.throws(() => send(allowed + 1), `a message of ${allowed + 1} bytes; max_payload is ${allowed}`)
      assert.throws(() => outgoing.publish("large", undefined, none, "x".repeat(allowed + 1)), "max_payload")
      for (const odd of ["", "a b", "a\r\nPUB b 0", "a\tb", "a\u0000"]) {
        assert.throws(() => outgoing.publish(odd, undefined, none, ""), "not a subject")
        assert.throws(() => outgoing.publish("a", odd, none, ""), "not a subject")
      }
      yield* Effect.promise(() => connection.flush())
      yield* Effect.promise(() => connection.close())
      assert.throws(() => send(100), "the connection is closed")
    }).pipe(Effect.scoped),
  )
})
