/** Traces of a real worker, as a receiver gets them: which span is parent of which, links, attributes, what events carry. */
import { assert, layer } from "@effect/vitest"
import { headers, type Msg } from "@nats-io/transport-node"
import { jetstream } from "@nats-io/jetstream"
import { Effect, Layer } from "effect"
import { TestNats, TestPostgres } from "../../bench/servers/privateServers.ts"
import { kinds, Receiver, receiving, type Span } from "../observe/Receiver.ts"
import { startWorkerWith } from "./service.ts"
import { ForeignClient } from "../foreign/ForeignClient.ts"
import { within } from "../foreign/within.ts"

const servers = Layer.mergeAll(ForeignClient.layer, Receiver.layer).pipe(
  Layer.provideMerge(Layer.mergeAll(TestNats.layer, TestPostgres.layer(2))),
)

const settings = (url: string) => ({
  OTEL_EXPORTER_OTLP_ENDPOINT: url,
  OTEL_EXPORTER_OTLP_PROTOCOL: "http/json",
  OTEL_BSP_SCHEDULE_DELAY: "50",
})

const secret = "disk 3 replaced"

/** A sender's trace: `parent` is its header. */
const sender = (digit: string, flags = "01") => {
  const traceId = digit.repeat(32)
  const spanId = digit.repeat(16)
  return { traceId, spanId, parent: `00-${traceId}-${spanId}-${flags}` }
}

/** Publishes and gives the first event that answers, with its headers; `last` waits for the last page. */
const answered = Effect.fnUntraced(function* (subject: string, body: object, values: Readonly<Record<string, string>>) {
  const { connection } = yield* ForeignClient
  const all: Array<Msg> = []
  return yield* Effect.callback<ReadonlyArray<Msg>>((resume) => {
    const inbox = `_INBOX.traces.${Math.random().toString(36).slice(2)}`
    const subscription = connection.subscribe(inbox, {
      callback: (_, message) => {
        all.push(message)
        if ((JSON.parse(message.string()) as { last?: boolean }).last === false) return
        subscription.unsubscribe()
        resume(Effect.succeed(all))
      },
    })
    const sent = headers()
    for (const [name, value] of Object.entries(values)) sent.set(name, value)
    connection.publish(subject, JSON.stringify({ ...body, reply_to: inbox }), { headers: sent })
    return Effect.sync(() => subscription.unsubscribe())
  }).pipe(within("an answer", 15_000))
})

const inTrace = (spans: ReadonlyArray<Span>, traceId: string) => spans.filter((span) => span.traceId === traceId)
const named = (spans: ReadonlyArray<Span>, name: string) => spans.find((span) => span.name === name)
const childrenOf = (spans: ReadonlyArray<Span>, parent: Span) =>
  spans.filter((span) => span.parentSpanId === parent.spanId)

/** All spans of a trace, once the message is settled. */
const settled = (traceId: string, name: string) =>
  Effect.gen(function* () {
    const { until } = yield* Receiver
    return yield* until(`${name} in ${traceId}`, (spans) => {
      const all = inTrace(spans, traceId)
      return named(all, name) === undefined ? undefined : all
    })
  })

layer(servers, { excludeTestServices: true, timeout: "60 seconds" })("traces of a worker", (it) => {
  it.effect("an append: sender, message, batch with statements, event; a batch links its messages", () =>
    Effect.gen(function* () {
      const { exports, url } = yield* Receiver
      const worker = yield* startWorkerWith({
        ...settings(url),
        OTEL_EXPORTER_OTLP_HEADERS: "authorization=Bearer%20s3cret",
        OTEL_RESOURCE_ATTRIBUTES: "deployment.environment.name=test%20bed",
        OTEL_SERVICE_NAME: "logs of objects",
      })
      const { parent, spanId, traceId } = sender("a")
      const [event] = yield* answered(
        "logs",
        { id: 7, log: secret },
        { traceparent: parent, tracestate: "vendor=x", "Nats-Msg-Id": "once" },
      )
      const spans = yield* settled(traceId, "process logs")
      const message = named(spans, "process logs")!
      assert.strictEqual(message.parentSpanId, spanId)
      assert.strictEqual(message.kind, kinds.consumer)
      assert.deepInclude(message.attributes, {
        "messaging.system": "nats",
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "messaging.destination.name": "logs",
        "messaging.message.id": "once",
        "messaging.nats.delivery_count": 1,
        "messaging.nats.settlement": "ack",
      })
      assert.deepInclude(message.resource, {
        "service.name": "logs of objects",
        "deployment.environment.name": "test bed",
      })

      const publish = named(spans, "publish response")!
      assert.strictEqual(publish.parentSpanId, message.spanId)
      assert.strictEqual(publish.kind, kinds.producer)
      assert.deepInclude(publish.attributes, {
        "messaging.operation.type": "send",
        "messaging.destination.name": "response",
      })
      assert.strictEqual(event!.headers!.get("traceparent"), `00-${traceId}-${publish.spanId}-01`)
      assert.strictEqual(event!.headers!.get("tracestate"), "vendor=x")

      const batch = named(spans, "append batch")!
      assert.strictEqual(batch.parentSpanId, message.spanId)
      assert.deepStrictEqual(
        batch.links.map((link) => link.spanId),
        [message.spanId],
      )
      assert.deepStrictEqual(
        message.links.map((link) => [link.traceId, link.spanId]),
        [[traceId, batch.spanId]],
      )
      assert.strictEqual(batch.attributes["messaging.batch.message_count"], 1)
      const [transaction, ...others] = childrenOf(spans, batch)
      assert.deepStrictEqual([transaction!.name, others.length], ["sql.transaction", 0])
      const statements = childrenOf(spans, transaction!)
      assert.includeMembers(
        statements.map((span) => span.name),
        ["BEGIN objectlog", "INSERT objectlog", "SELECT objectlog", "COMMIT objectlog"],
      )
      for (const statement of statements) {
        assert.strictEqual(statement.kind, kinds.client)
        assert.deepInclude(statement.attributes, {
          "db.system.name": "postgresql",
          "db.namespace": "objectlog",
          "server.address": "127.0.0.1",
          "objectlog.shard": batch.attributes["objectlog.shard"],
        })
        assert.isAbove(Number(statement.attributes["server.port"]), 1024)
        assert.strictEqual(statement.name, `${String(statement.attributes["db.operation.name"])} objectlog`)
      }

      assert.strictEqual(exports[0]!.path, "/v1/traces")
      assert.strictEqual(exports[0]!.headers["authorization"], "Bearer s3cret")
      for (const { body } of exports) assert.notInclude(body.toString(), secret)
      assert.notInclude(worker.output(), "s3cret")

      // Several at once: those that one transaction appends are linked to it, and it to them.
      const { connection } = yield* ForeignClient
      const senders = "bcdef".split("").map((digit) => sender(digit))
      for (const { parent: traceparent } of senders) {
        const sent = headers()
        sent.set("traceparent", traceparent)
        connection.publish("logs", JSON.stringify({ id: 7, log: secret }), { headers: sent })
      }
      const { until } = yield* Receiver
      const all = yield* until("all messages of a burst", (found) =>
        senders.every((each) => named(inTrace(found, each.traceId), "process logs") !== undefined) ? found : undefined,
      )
      const messages = senders.map((each) => named(inTrace(all, each.traceId), "process logs")!)
      const batches = all.filter((span) => span.name === "append batch" && span.traceId !== traceId)
      for (const each of messages) {
        const linked = batches.find((span) => span.spanId === each.links[0]?.spanId)
        assert.include(
          linked!.links.map((link) => link.spanId),
          each.spanId,
        )
      }
      assert.strictEqual(
        batches.reduce((sum, span) => sum + span.links.length, 0),
        senders.length,
      )
    }),
  )

  it.effect("a read: statements and pages below its message; a refusal with its code", () =>
    Effect.gen(function* () {
      const { url } = yield* Receiver
      yield* startWorkerWith(settings(url))
      const read = sender("1")
      const pages = yield* answered("query", { id: 7 }, { traceparent: read.parent })
      const spans = yield* settled(read.traceId, "process query")
      const message = named(spans, "process query")!
      assert.strictEqual(message.parentSpanId, read.spanId)
      const publish = named(spans, "publish response")!
      assert.strictEqual(publish.parentSpanId, message.spanId)
      assert.strictEqual(pages.at(-1)!.headers!.get("traceparent"), `00-${read.traceId}-${publish.spanId}-01`)
      const batch = named(spans, "read batch")!
      assert.strictEqual(batch.parentSpanId, message.spanId)
      assert.deepStrictEqual(
        batch.links.map(({ spanId }) => spanId),
        [message.spanId],
      )
      assert.lengthOf(
        childrenOf(spans, batch).filter((span) => span.name === "SELECT objectlog"),
        1,
      )

      const refused = sender("2")
      yield* answered("logs", { id: 7, log: 7 }, { traceparent: refused.parent, tracestate: "vendor=y" })
      const [bad] = (yield* settled(refused.traceId, "process logs")).filter((span) => span.name === "process logs")
      assert.strictEqual(bad!.attributes["error.type"], "invalid_message")
      assert.strictEqual(bad!.status.code, 2)
      const { connection } = yield* ForeignClient
      const letter = yield* Effect.promise(async () => {
        const consumer = await jetstream(connection).consumers.get("objectlog_dead")
        return consumer.next({ expires: 5_000 })
      })
      assert.deepStrictEqual(
        [letter!.headers!.get("traceparent"), letter!.headers!.get("tracestate")],
        [refused.parent, "vendor=y"],
      )
    }),
  )

  it.effect("not sampled: by its sender, by the share; malformed headers begin a new trace", () =>
    Effect.gen(function* () {
      const { until, url } = yield* Receiver
      yield* startWorkerWith(settings(url))
      const quiet = sender("3", "00")
      const [event] = yield* answered("logs", { id: 7, log: "quiet" }, { traceparent: quiet.parent, tracestate: "v=1" })
      assert.strictEqual(event!.headers!.get("traceparent"), quiet.parent)
      assert.strictEqual(event!.headers!.get("tracestate"), "v=1")
      const [fresh] = yield* answered("logs", { id: 7, log: "new" }, { traceparent: `00-${"0".repeat(32)}-1-01` })
      const root = /^00-([\da-f]{32})-([\da-f]{16})-01$/.exec(fresh!.headers!.get("traceparent"))![1]!
      const spans = yield* settled(root, "process logs")
      assert.isUndefined(named(spans, "process logs")!.parentSpanId)
      // It came after the quiet one, so that one's spans would be there.
      yield* until("no span of the quiet one", (all) => (inTrace(all, quiet.traceId).length === 0 ? true : undefined))
    }),
  )

  it.effect("a receiver that hangs, or is gone, holds up neither the work nor the end", () =>
    Effect.gen(function* () {
      const hanging = yield* receiving(() => {})
      const worker = yield* startWorkerWith({ ...settings(hanging.url), OTEL_EXPORTER_OTLP_PROTOCOL: "http/protobuf" })
      yield* answered("logs", { id: 8, log: "one" }, { traceparent: sender("4").parent })
      assert.strictEqual(yield* worker.stop("SIGTERM", 10_000), 0)
      assert.isNotEmpty(hanging.exports)
      for (const { headers } of hanging.exports) assert.strictEqual(headers["content-type"], "application/x-protobuf")
      assert.include(hanging.exports.map(({ body }) => body.toString("latin1")).join(), "process logs")

      const gone = yield* Effect.scoped(Effect.map(receiving(), ({ url }) => url))
      const other = yield* startWorkerWith(settings(gone))
      for (const digit of "5678") yield* answered("logs", { id: 8, log: digit }, { traceparent: sender(digit).parent })
      assert.strictEqual(yield* other.stop("SIGTERM", 10_000), 0)
      assert.isAtMost(other.output().split("does not take spans").length - 1, 1)
    }),
  )
})
