/** What every Broker must do; run on NATS and on the in-memory twin. */
import { assert, it } from "@effect/vitest"
import { Deferred, Effect, Fiber, Schedule, Stream } from "effect"
import {
  Broker,
  type BrokerState,
  type BrokerUnavailable,
  type ConsumerState,
  type Delivery,
} from "../../src/broker/Broker.ts"
import type { StoredMessage } from "../../src/broker/MemoryStream.ts"

/** What the suite needs to see from outside of the broker. */
export interface BrokerProbe {
  readonly publishAppend: (payload: string, headers?: Readonly<Record<string, string>>) => Effect.Effect<void>
  /** Everything stored on the response topic and below it, in order, until `count` are there. */
  readonly events: (count: number) => Effect.Effect<ReadonlyArray<{ subject: string; payload: string }>>
  /** The headers `traceparent` and `tracestate` of the same; `""` where one is not there. */
  readonly traces: (count: number) => Effect.Effect<ReadonlyArray<readonly [traceparent: string, tracestate: string]>>
  /** Has a request tried again, as it was stored at first. */
  readonly retry: (original: StoredMessage, outcome: string) => Effect.Effect<void>
  readonly deadLetters: (
    count: number,
  ) => Effect.Effect<ReadonlyArray<{ payload: string; code: string; reason: string }>>
}

/** Takes some deliveries of what was parked, then stops the pull. */
const takeOf = (stream: Stream.Stream<Delivery, BrokerUnavailable>, count: number) =>
  stream.pipe(Stream.take(count), Stream.runCollect)

const stampOf = ({ subject, seq, timestamp }: Delivery) => ({ subject, seq, timestamp })

/** Takes `count` deliveries, then stops the pull. */
const take = (count: number): Effect.Effect<ReadonlyArray<Delivery>, BrokerUnavailable, Broker> =>
  Broker.use((broker) => broker.appends.pipe(Stream.take(count), Stream.runCollect))

const text = (delivery: Delivery) => Buffer.from(delivery.payload).toString()

const nothing: ConsumerState = { pending: 0, ackPending: 0, ackFloor: 0, delivered: 0, pulls: 0, buffered: 0, taken: 0 }

/** Each test gets a broker of its own. */
export const brokerContract = (
  provide: <E>(test: (probe: BrokerProbe) => Effect.Effect<void, E, Broker>) => Effect.Effect<void, unknown>,
) => {
  it.live("delivers payload and headers as they were sent, with rising stamps", () =>
    provide((probe) =>
      Effect.gen(function* () {
        yield* probe.publishAppend("one", { "Nats-Msg-Id": "m1", traceparent: "t" })
        yield* probe.publishAppend("two")
        const [one, two] = yield* take(2)
        assert.strictEqual(text(one!), "one")
        assert.strictEqual(one!.header("Nats-Msg-Id"), "m1")
        assert.strictEqual(one!.header("traceparent"), "t")
        assert.isUndefined(two!.header("Nats-Msg-Id"))
        assert.strictEqual(one!.subject, "logs")
        assert.deepStrictEqual([one!.seq, two!.seq, one!.deliveryCount], [1, 2, 1])
        assert.isTrue(two!.timestamp > one!.timestamp)
        one!.ack()
        two!.ack()
      }),
    ),
  )

  it.live("what was handed back comes again with the same stamp; what was acknowledged does not", () =>
    provide((probe) =>
      Effect.gen(function* () {
        yield* probe.publishAppend("back")
        yield* probe.publishAppend("done")
        const [back, done] = yield* take(2)
        back!.retry(0)
        done!.ack()
        const [again] = yield* take(1)
        assert.strictEqual(text(again!), "back")
        assert.strictEqual(again!.deliveryCount, 2)
        assert.strictEqual(again!.timestamp, back!.timestamp)
        again!.retry(10)
        const [third] = yield* take(1)
        assert.deepStrictEqual([third!.seq, third!.deliveryCount], [1, 3])
        third!.ack()
      }),
    ),
  )

  it.live("what was buffered and not taken is there for the next one", () =>
    provide((probe) =>
      Effect.gen(function* () {
        const broker = yield* Broker
        const waiting = yield* broker.appends.pipe(Stream.runDrain, Effect.forkChild)
        yield* Fiber.interrupt(waiting)
        for (let i = 0; i < 20; i++) yield* probe.publishAppend(String(i))
        const seen = yield* take(20)
        assert.sameMembers(
          seen.map(text),
          Array.from({ length: 20 }, (_, i) => String(i)),
        )
        for (const delivery of seen) delivery.ack()
      }),
    ),
  )

  it.live("two workers share the messages: each goes to one of them", () =>
    provide((probe) =>
      Effect.gen(function* () {
        const broker = yield* Broker
        const seen: Array<string> = []
        const all = yield* Deferred.make<void>()
        const worker = broker.appends.pipe(
          Stream.runForEach((delivery) => {
            seen.push(text(delivery))
            delivery.ack()
            return seen.length === 300 ? Deferred.succeed(all, undefined) : Effect.void
          }),
          Effect.forkChild,
        )
        const first = yield* worker
        const second = yield* worker
        for (let i = 0; i < 100; i++) yield* probe.publishAppend(String(i))
        yield* Fiber.interrupt(second)
        for (let i = 100; i < 300; i++) yield* probe.publishAppend(String(i))
        yield* Deferred.await(all)
        yield* Fiber.interrupt(first)
        assert.strictEqual(new Set(seen).size, 300)
      }),
    ),
  )

  it.live("what arrived and was not taken is handed back on interruption", () =>
    provide((probe) =>
      Effect.gen(function* () {
        const broker = yield* Broker
        const taken = yield* Deferred.make<void>()
        yield* probe.publishAppend("held")
        const busy = yield* broker.appends.pipe(
          Stream.runForEachArray((chunk) => {
            for (const delivery of chunk) delivery.ack()
            return Effect.andThen(Deferred.succeed(taken, undefined), Effect.never)
          }),
          Effect.forkChild,
        )
        yield* Deferred.await(taken)
        for (let i = 0; i < 20; i++) yield* probe.publishAppend(String(i))
        yield* Fiber.interrupt(busy)
        const seen = yield* take(20)
        assert.sameMembers(
          seen.map(text),
          Array.from({ length: 20 }, (_, i) => String(i)),
        )
        for (const delivery of seen) delivery.ack()
      }),
    ),
  )

  it.live("an event that is larger than max_payload fails, and does not hang", () =>
    provide(() =>
      Effect.gen(function* () {
        const broker = yield* Broker
        const payload = "x".repeat(broker.maxPayload() + 1)
        const error = yield* Effect.flip(broker.publish([{ payload, messageId: "large", replyTo: undefined }]))
        assert.strictEqual(error._tag, "BrokerUnavailable")
      }),
    ),
  )

  it.live("an event is stored once for its id, with its copies", () =>
    provide((probe) =>
      Effect.gen(function* () {
        const broker = yield* Broker
        yield* broker.publish([
          { payload: "a", messageId: "1", replyTo: undefined },
          { payload: "b", messageId: "2", replyTo: "response.x" },
          { payload: "c", messageId: "3", replyTo: "_INBOX.nobody" },
        ])
        yield* broker.publish([
          { payload: "a", messageId: "1", replyTo: undefined },
          { payload: "d", messageId: "4", replyTo: undefined },
        ])
        yield* broker.publish([])
        assert.deepStrictEqual(yield* probe.events(5), [
          { subject: "response", payload: "a" },
          { subject: "response.x", payload: "b" },
          { subject: "response", payload: "b" },
          { subject: "response", payload: "c" },
          { subject: "response", payload: "d" },
        ])
      }),
    ),
  )

  it.live("what was parked comes with its first stamp, subject and headers, once, and for its shard alone", () =>
    provide((probe) =>
      Effect.gen(function* () {
        const broker = yield* Broker
        const own = { "Nats-Msg-Id": "m1", traceparent: "t", "Objectlog-Seq": "77", "Original-Nats-Msg-Id": "m2" }
        yield* probe.publishAppend("filler")
        yield* probe.publishAppend("for a", own)
        yield* probe.publishAppend("for b")
        const [filler, forA, forB] = yield* take(3)
        assert.deepStrictEqual(yield* broker.park("appends", "shard.1:5432", [forA!]), [])
        assert.deepStrictEqual(yield* broker.park("appends", "shard.1:5432", [forA!]), [])
        assert.deepStrictEqual(yield* broker.park("appends", "shard.1:543", [forB!]), [])
        for (const delivery of [filler!, forA!, forB!]) delivery.ack()

        const [a] = yield* takeOf(broker.parked("appends", "shard.1:5432"), 1)
        assert.strictEqual(text(a!), "for a")
        assert.deepStrictEqual(stampOf(a!), stampOf(forA!))
        assert.deepStrictEqual([a!.deliveryCount, a!.outcomePrefix], [1, ""])
        for (const [name, value] of Object.entries(own)) assert.strictEqual(a!.header(name), value)
        assert.isUndefined(a!.header("Objectlog-Timestamp"))
        a!.retry(10)
        const [again] = yield* takeOf(broker.parked("appends", "shard.1:5432"), 1)
        assert.deepStrictEqual(stampOf(again!), stampOf(forA!))
        assert.isAbove(again!.deliveryCount, 1)
        again!.ack()

        const [b] = yield* takeOf(broker.parked("appends", "shard.1:543"), 1)
        assert.deepStrictEqual(stampOf(b!), stampOf(forB!))
        b!.ack()
      }),
    ),
  )

  it.live("what does not fit with its stamp is not parked, and named", () =>
    provide((probe) =>
      Effect.gen(function* () {
        const broker = yield* Broker
        yield* probe.publishAppend("x".repeat(broker.maxPayload() - 20))
        yield* probe.publishAppend("small")
        const [large, small] = yield* take(2)
        assert.deepStrictEqual(yield* broker.park("appends", "a", [large!, small!]), [large!])
        const [parked] = yield* takeOf(broker.parked("appends", "a"), 1)
        assert.strictEqual(text(parked!), "small")
        for (const delivery of [large!, small!, parked!]) delivery.ack()
      }),
    ),
  )

  it.live("a retry has the first stamp and headers, and an outcome of its own: a second dead letter is kept", () =>
    provide((probe) =>
      Effect.gen(function* () {
        const broker = yield* Broker
        yield* probe.publishAppend("filler")
        yield* probe.publishAppend("bad", { "Nats-Msg-Id": "m1" })
        const [filler, bad] = yield* take(2)
        yield* broker.deadLetter(bad!, { code: "entry_rejected", message: "first" })
        filler!.ack()
        bad!.ack()
        const original = { ...stampOf(bad!), payload: bad!.payload, headers: { "Nats-Msg-Id": "m1" } }
        yield* probe.retry(original, "r1")
        const [retried] = yield* takeOf(broker.retries, 1)
        assert.deepStrictEqual(stampOf(retried!), stampOf(bad!))
        assert.deepStrictEqual([retried!.outcomePrefix, retried!.header("Nats-Msg-Id")], ["r1-", "m1"])
        yield* broker.deadLetter(retried!, { code: "entry_rejected", message: "second" })
        retried!.ack()
        assert.deepStrictEqual(
          (yield* probe.deadLetters(2)).map(({ payload, reason }) => [payload, reason]),
          [
            ["bad", "first"],
            ["bad", "second"],
          ],
        )
      }),
    ),
  )

  it.live("an event carries its trace, and so does its copy", () =>
    provide((probe) =>
      Effect.gen(function* () {
        const broker = yield* Broker
        const event = { payload: "a", replyTo: undefined }
        yield* broker.publish([
          { ...event, messageId: "1" },
          { ...event, messageId: "2", replyTo: "response.x", trace: { traceparent: "parent", tracestate: "state" } },
          { ...event, messageId: "3", trace: { traceparent: "other", tracestate: undefined } },
        ])
        assert.deepStrictEqual(yield* probe.traces(4), [
          ["", ""],
          ["parent", "state"],
          ["parent", "state"],
          ["other", ""],
        ])
      }),
    ),
  )

  it.live("a dead letter keeps the payload, says why, and is stored once, whatever it says", () =>
    provide((probe) =>
      Effect.gen(function* () {
        const broker = yield* Broker
        yield* probe.publishAppend("bad")
        yield* probe.publishAppend("odd")
        const [bad, odd] = yield* take(2)
        // A server that looks for its name in the headers finds this one.
        const reason = { code: "invalid_message", message: "Nats-Msg-Id: expected UTF-8" } as const
        yield* broker.deadLetter(bad!, reason)
        yield* broker.deadLetter(bad!, reason)
        yield* broker.deadLetter(odd!, { code: "invalid_json", message: "payload: no" })
        bad!.ack()
        odd!.ack()
        assert.deepStrictEqual(yield* probe.deadLetters(2), [
          { payload: "bad", code: "invalid_message", reason: reason.message },
          { payload: "odd", code: "invalid_json", reason: "payload: no" },
        ])
      }),
    ),
  )

  it.live("tells what waits, what is under way and up to where all is done", () =>
    provide((probe) =>
      Effect.gen(function* () {
        const broker = yield* Broker
        // What was settled reaches the broker a moment later.
        const stateWhen = (condition: (state: BrokerState) => boolean) =>
          broker.state.pipe(
            Effect.repeat({ until: condition, schedule: Schedule.spaced("10 millis") }),
            Effect.timeout("5 seconds"),
            Effect.orDie,
          )
        assert.deepStrictEqual(yield* broker.state, { appends: nothing, queries: nothing, problems: [] })
        for (const payload of ["one", "two", "three"]) yield* probe.publishAppend(payload)
        const before = yield* broker.state
        assert.deepStrictEqual(before, { appends: { ...nothing, pending: 3 }, queries: nothing, problems: [] })
        const [one, two, three] = yield* take(3)
        one!.ack()
        three!.ack()
        const between = yield* stateWhen(({ appends }) => appends?.ackPending === 1)
        assert.deepInclude(between.appends, { pending: 0, ackFloor: 1, delivered: 3, buffered: 0, taken: 3 })
        two!.ack()
        const after = yield* stateWhen(({ appends }) => appends?.ackPending === 0)
        assert.deepInclude(after.appends, { pending: 0, ackFloor: 3, delivered: 3 })
      }),
    ),
  )
}
