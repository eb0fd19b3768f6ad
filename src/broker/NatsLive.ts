/** The broker on NATS JetStream. */
import { jetstreamManager } from "@nats-io/jetstream"
import { connect, type NatsConnection } from "@nats-io/transport-node"
import { Effect, Layer, Random, Schedule, Semaphore, Stream } from "effect"
import { Broker, BrokerUnavailable, type Delivery, type OutgoingEvent } from "./Broker.ts"
import { connectionOptions } from "./connectionOptions.ts"
import { deadLetterMessages } from "./deadLetter.ts"
import { deliveries, type Reconnects } from "./deliveries.ts"
import { NatsDelivery } from "./NatsDelivery.ts"
import {
  attempt,
  type BrokerMisconfigured,
  ensureConsumer,
  intakeConsumer,
  provision,
  remarkOnStreams,
  retryConsumer,
  parkedConsumer,
  type Topics,
} from "./provision.ts"
import { brokerState } from "./brokerState.ts"
import { type ConsumerSpec, pullMax } from "./consumerRules.ts"
import { resetAhead } from "./maintain.ts"
import { type FoundStream, StreamLives } from "./StreamLife.ts"
import { parkedSubject, setAsideMessage } from "./setAside.ts"
import { Incoming } from "./Incoming.ts"
import { Outgoing } from "./Outgoing.ts"
import { eventHeaders, makePublisher, type Message, publishMade } from "./publish.ts"
import { isStoreFull } from "./refusals.ts"
import { makeStorage } from "./Storage.ts"

export interface NatsSettings extends Topics {
  /** Comma-separated server list; may carry credentials, so it is never shown. */
  readonly servers: string
  readonly connectionName: string
}

/** Messages asked for at a time: what two lanes take while more is on its way, and some large reads. */
const appendsPull = pullMax
const queriesPull = 64

/** Between two attempts to make missing streams again after a publish that failed. */
const repairPauseMillis = 1_000

/** Waits until a server answers, saying so every few seconds. */
const connected = Effect.fnUntraced(function* (settings: NatsSettings, reconnects: Reconnects) {
  // One attempt can't be interrupted, so that no connection is lost; waiting for the next one can.
  const connection = yield* Effect.acquireRelease(
    attempt("connect", () =>
      connect({
        ...connectionOptions(settings.servers).options,
        name: settings.connectionName,
        maxReconnectAttempts: -1,
        reconnectTimeWait: 250,
        reconnectJitter: 100,
        pingInterval: 10_000,
        timeout: 2_000,
      }),
    ),
    (nc) =>
      attempt("drain", () => nc.drain()).pipe(
        Effect.timeoutOption("2 seconds"),
        Effect.ignore,
        Effect.andThen(Effect.promise(() => nc.close())),
      ),
  ).pipe(
    Effect.tapError((error) => Effect.logWarning(`${error.message}; trying again`)),
    Effect.retry(Schedule.spaced("2 seconds")),
  )
  yield* Stream.fromAsyncIterable(connection.status(), (cause) => cause).pipe(
    Stream.tap((status) =>
      Effect.sync(() => {
        if (status.type === "disconnect") reconnects.connected = false
        if (status.type !== "reconnect") return
        reconnects.connected = true
        // At once, before anybody settles a delivery from before.
        for (const listener of reconnects.listeners) listener()
      }),
    ),
    Stream.runForEach((status) =>
      status.type === "disconnect" || status.type === "ldm" || status.type === "error"
        ? Effect.logWarning(`broker: ${status.type}`)
        : status.type === "reconnect"
          ? Effect.logInfo("broker: reconnected")
          : Effect.void,
    ),
    Effect.ignore,
    Effect.forkScoped,
  )
  return connection
})

/** A text of more characters becomes bytes here, once for event, copy and every attempt; a short one is cheaper as text. */
const longText = 16 * 1024

const toMessage = (topic: string, { payload: text, messageId, replyTo, trace }: OutgoingEvent): Message => {
  const payload = text.length > longText ? Buffer.from(text) : text
  const headers = eventHeaders(messageId, trace)
  if (replyTo === undefined) return { subject: topic, payload, headers, copy: undefined }
  // Below the response topic the stream takes the copy too, as a message of its own.
  const captured = replyTo.startsWith(`${topic}.`)
  const copy = { subject: replyTo, headers: captured ? eventHeaders(`${messageId}:reply`, trace) : headers }
  return { subject: topic, payload, headers, copy }
}

const sizeOf = (event: OutgoingEvent): number =>
  (event.size ?? event.payload.length) * (event.replyTo === undefined ? 1 : 2)

const foreign = (operation: string) =>
  Effect.fail(new BrokerUnavailable({ operation, cause: new Error("not a delivery of this broker") }))

const make = Effect.fnUntraced(function* (settings: NatsSettings) {
  const reconnects: Reconnects = { listeners: new Set(), connected: true }
  const connection: NatsConnection = yield* connected(settings, reconnects)
  const jsm = yield* attempt("JetStream", () => jetstreamManager(connection, { checkAPI: false }))
  const backoff = Schedule.min([Schedule.exponential("100 millis"), Schedule.spaced("5 seconds")]).pipe(
    Schedule.jittered,
  )
  const warn = (error: BrokerUnavailable) => Effect.logWarning(`${error.message}; trying again`)
  // At the start a misconfiguration stops the worker; later it waits until that is put right.
  const found = yield* provision(jsm, settings).pipe(
    Effect.tapErrorTag("BrokerUnavailable", warn),
    Effect.retry({ schedule: backoff, while: (error) => error._tag === "BrokerUnavailable" }),
  )
  yield* remarkOnStreams(jsm, settings, found)
  const outgoing = new Outgoing(connection)
  const incoming = new Incoming(connection)
  const streamOf = (part: FoundStream) => new StreamLives(part, () => reconnects.connected, outgoing)
  const streams = { logs: streamOf(found.logs), query: streamOf(found.query), parked: streamOf(found.parked) }
  const publishAll = yield* makePublisher(connection, outgoing, incoming, reconnects)
  // A window of its own, so that a parked stream that confirms nothing does not hold up events.
  const parkAll = yield* makePublisher(connection, outgoing, incoming, reconnects)

  // Unknown while the connection is being made again: then the last one counts.
  let lastMaxPayload = 1024 * 1024
  const maxPayload = () => (lastMaxPayload = connection.info?.max_payload ?? lastMaxPayload)
  maxPayload()

  const isConnected = () => reconnects.connected && !connection.isClosed()
  const storage = yield* makeStorage({
    jsm,
    topics: settings,
    publish: parkAll,
    maxPayload,
    isConnected,
    reconnects,
    nameOf: (part) => (part === "response" || part === "dead" ? found[part].name : streams[part].name),
  })

  /** Makes sure of a pull consumer with everything that it needs; gives its stream. Tries until it has succeeded. */
  const ensured = (spec: ConsumerSpec): Effect.Effect<FoundStream> =>
    provision(jsm, settings).pipe(
      Effect.map((all) => all[spec.part]),
      Effect.tap(({ name }) =>
        ensureConsumer(jsm, name, spec).pipe(
          Effect.andThen(resetAhead(jsm, name, spec.name)),
          Effect.flatMap((wasReset) => (wasReset ? ensureConsumer(jsm, name, spec) : Effect.void)),
        ),
      ),
      Effect.tapErrorTag("BrokerUnavailable", warn),
      Effect.tapErrorTag("BrokerMisconfigured", (error) =>
        Effect.logError(`${error.message}; nothing is taken from ${spec.filter} until that is put right`),
      ),
      Effect.retry(backoff),
      // The schedule has no end, so an error can't come through.
      Effect.catch(() => Effect.never),
    )
  /** After a consumer was lost: a pause, then everything that is missing is made again. */
  const recover = Effect.fnUntraced(function* (spec: ConsumerSpec, reason: string | undefined, failures: number) {
    if (reason !== undefined) {
      yield* Effect.logWarning(
        `broker: the consumer ${spec.name} on ${spec.filter} is lost (${reason}); making sure of it`,
      )
      yield* Effect.sleep(Math.min(200 * 2 ** failures, 5_000) * (0.8 + 0.4 * (yield* Random.next)))
    }
    return yield* ensured(spec)
  })
  const counts = {
    logs: { buffered: 0, taken: 0 },
    query: { buffered: 0, taken: 0 },
    parked: { buffered: 0, taken: 0 },
  }
  const pull = (spec: ConsumerSpec, messages: number) => {
    const options = {
      counts: counts[spec.part],
      volume: storage.volumes[spec.part],
      connection,
      incoming,
      stream: streams[spec.part],
      consumer: spec.name,
      isSetAside: spec.part === "parked",
      pull: messages,
      recover: (reason: string | undefined, failures: number) => recover(spec, reason, failures),
    }
    return deliveries(options, reconnects)
  }
  /** The consumers of what was set aside are made by who first pulls. */
  const pullSetAside = (spec: ConsumerSpec, messages: number) =>
    Stream.unwrap(
      Effect.suspend(() => ensureConsumer(jsm, streams.parked.name, spec)).pipe(
        // The pull finds out as well, and has the patience.
        Effect.catch((error) => Effect.logDebug(error.message)),
        Effect.as(pull(spec, messages)),
      ),
    )

  /** What a stream refuses to store may be missing it; several that publish make it again once. */
  const repairing = Semaphore.makeUnsafe(1)
  let repairedAt = 0
  const repair = Effect.suspend(() => {
    if (!reconnects.connected || Date.now() - repairedAt < repairPauseMillis) return Effect.void
    return provision(jsm, settings).pipe(
      Effect.catchTags({
        BrokerUnavailable: (error) => Effect.logWarning(error.message),
        BrokerMisconfigured: (error) => Effect.logError(error.message),
      }),
      Effect.ensuring(Effect.sync(() => (repairedAt = Date.now()))),
    )
  }).pipe(repairing.withPermits(1))

  return Broker.of({
    maxPayload,
    isConnected,
    storage: storage.state,
    state: brokerState(jsm, settings, counts),
    appends: pull(intakeConsumer("logs", settings), appendsPull),
    queries: pull(intakeConsumer("query", settings), queriesPull),
    publish: (events) =>
      storage
        .storeEvents(
          events.length,
          publishAll(events, (event) => toMessage(settings.responseTopic, event), sizeOf),
        )
        .pipe(Effect.tapError(() => repair)),
    deadLetter: (delivery: Delivery, reason) =>
      delivery instanceof NatsDelivery
        ? Effect.suspend(() =>
            storage.store(
              "dead letters",
              publishMade(publishAll, deadLetterMessages(settings.deadTopic, delivery, reason, maxPayload())),
            ),
          ).pipe(Effect.tapError(() => repair))
        : foreign("dead letter"),
    park: (kind, shard, all) =>
      Effect.suspend(() => {
        const subject = parkedSubject(settings.logsTopic, kind, shard)
        const messages: Array<Message> = []
        const tooLarge: Array<Delivery> = []
        for (const delivery of all) {
          if (!(delivery instanceof NatsDelivery)) return foreign("park")
          const message = setAsideMessage(subject, delivery, maxPayload())
          if (message === undefined) tooLarge.push(delivery)
          else messages.push(message)
        }
        return storage.store("parked requests", publishMade(parkAll, messages)).pipe(
          Effect.as<ReadonlyArray<Delivery>>(tooLarge),
          // They go back to the intake, where they have their room already.
          Effect.catchIf(isStoreFull, () => Effect.succeed(all)),
          Effect.tapError(() => repair),
        )
      }),
    parked: (kind, shard) =>
      pullSetAside(parkedConsumer(kind, shard, settings), kind === "appends" ? appendsPull : queriesPull),
    retries: pullSetAside(retryConsumer(settings), appendsPull),
  })
})

/** The live broker. Building it waits for the server, and creates streams and consumers that are missing. */
export const NatsLive = (settings: NatsSettings): Layer.Layer<Broker, BrokerUnavailable | BrokerMisconfigured> =>
  Layer.effect(Broker, make(settings))
