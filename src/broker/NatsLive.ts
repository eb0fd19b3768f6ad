/** The broker on NATS JetStream. */
import { jetstreamManager } from "@nats-io/jetstream"
import { connect } from "@nats-io/transport-node"
import { Effect, Layer, Schedule, type Stream } from "effect"
import {
  Broker,
  BrokerClosed,
  BrokerUnavailable,
  type ConnectionView,
  type Delivery,
  type OutgoingEvent,
} from "./Broker.ts"
import { brokerState } from "./brokerState.ts"
import { connectionEnd, type ConnectionState, watchConnection } from "../nats/connection.ts"
import { connectionOptions } from "../nats/connectionOptions.ts"
import type { ConsumerSpec } from "./consumerRules.ts"
import { deadLetterMessages } from "./deadLetter.ts"
import { deliveries } from "./deliveries.ts"
import { Incoming } from "../nats/Incoming.ts"
import { appendsPull, intakeBytes, queriesPull, setAsidePart } from "./intakeLimits.ts"
import { NatsDelivery } from "./NatsDelivery.ts"
import { Outgoing } from "../nats/Outgoing.ts"
import {
  attempt,
  type BrokerMisconfigured,
  intakeConsumer,
  parkedConsumer,
  provision,
  remarkOnStreams,
  retryConsumer,
  type Topics,
} from "./provision.ts"
import { makePublisher, type Message, publishMade } from "../nats/publish.ts"
import { eventHeaders, publishFailed } from "./publishing.ts"
import { Recovery, recoveryPauses } from "./Recovery.ts"
import { isStoreFull } from "../nats/jetStreamErrors.ts"
import { parkedSubject, setAsideMessage } from "./setAside.ts"
import { parkedTopic, reserveTopic } from "../contract/Topics.ts"
import { makeStorage } from "./Storage.ts"
import { StreamLives } from "./StreamLife.ts"
import type { PurgedPart, StreamPart } from "./streamRules.ts"
import { Violations } from "./Violations.ts"

export interface NatsSettings extends Topics {
  /** Comma-separated server list; may carry credentials, so it is never shown. */
  readonly servers: string
  readonly connectionName: string
  /** How many shards there are: each has its part of the memory for what was set aside. Default: 1. */
  readonly shards?: number
}

/** Waits until a server answers, saying so every few seconds. */
const connected = Effect.fnUntraced(function* ({ connectionName, servers }: NatsSettings) {
  // One attempt can't be interrupted, so that no connection is lost; waiting for the next one can.
  const connection = yield* Effect.acquireRelease(
    attempt("connect", () => connect(connectionOptions(servers, connectionName))),
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
  const state = yield* watchConnection(connection, (text, type) =>
    type === "reconnect" ? Effect.logInfo(text) : Effect.logWarning(text),
  )
  return { connection, state }
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

/** Says what the broker refuses for the first time, or again, and remembers it. */
const watchViolations = Effect.fnUntraced(function* (
  state: ConnectionState,
  { deadTopic, logsTopic, responseTopic }: Topics,
) {
  const violations = new Violations({
    responseTopic,
    deadTopic,
    parkedTopic: parkedTopic(logsTopic),
    reserveTopic: reserveTopic(logsTopic),
  })
  const runFork = Effect.runForkWith(yield* Effect.context())
  state.onViolation.add((error) => {
    const news = violations.note(error, Date.now())
    if (news !== undefined) runFork(Effect.logError(`broker: refused (${news.operation}): ${news.text}`))
  })
  return violations
})

const make = Effect.fnUntraced(function* (settings: NatsSettings) {
  const { connection, state } = yield* connected(settings)
  const closed = Effect.mapError(connectionEnd(connection, state), ({ reason }) => new BrokerClosed({ reason }))
  const violations = yield* watchViolations(state, settings)
  const jsm = yield* attempt("JetStream", () => jetstreamManager(connection, { checkAPI: false }))
  // Unknown while the connection is being made again: then the last one counts.
  let lastMaxPayload = 1024 * 1024
  const maxPayload = () => (lastMaxPayload = connection.info?.max_payload ?? lastMaxPayload)
  maxPayload()
  // At the start a misconfiguration stops the worker; later it waits until that is put right.
  const found = yield* provision(jsm, settings).pipe(
    Effect.tapErrorTag("BrokerUnavailable", (error) => Effect.logWarning(`${error.message}; trying again`)),
    Effect.retry({ schedule: recoveryPauses, while: (error) => error._tag === "BrokerUnavailable" }),
    Effect.raceFirst(closed),
  )
  yield* remarkOnStreams(jsm, settings)
  const outgoing = new Outgoing(connection)
  const incoming = new Incoming(connection)
  const recovery = new Recovery(jsm, state, settings, maxPayload)

  const lives = Effect.fnUntraced(function* (part: PurgedPart) {
    const stream = new StreamLives(found[part], () => state.connected, outgoing)
    // The first to hear of it: before anything of the stream is settled or pulled.
    state.onReconnect.add(() => stream.doubt())
    yield* Effect.forkScoped(stream.keep(recovery.stream(part)))
    return stream
  })
  const streams = { logs: yield* lives("logs"), query: yield* lives("query"), parked: yield* lives("parked") }

  // Windows of their own, so that a stream that confirms nothing does not hold up what goes to the others.
  const publisher = makePublisher(connection, outgoing, incoming, state, publishFailed)
  const publishers = { response: yield* publisher, dead: yield* publisher, parked: yield* publisher }
  /** Makes a stream again that did not confirm what was stored in it; its failure is the caller's. */
  const repairing =
    (part: StreamPart) =>
    <A>(self: Effect.Effect<A, BrokerUnavailable>): Effect.Effect<A, BrokerUnavailable> =>
      self.pipe(
        Effect.tap(() => Effect.sync(() => recovery.works(part))),
        Effect.tapError(() => recovery.repair(part)),
      )

  const isConnected = () => state.connected && !connection.isClosed()
  const storage = yield* makeStorage({
    jsm,
    topics: settings,
    publish: yield* publisher,
    maxPayload,
    isConnected,
    version: () => connection.info?.version,
    reconnects: state.onReconnect,
    nameOf: (part) => (part === "response" || part === "dead" ? found[part].name : streams[part].name),
  })

  const counts = {
    logs: { buffered: 0, taken: 0 },
    query: { buffered: 0, taken: 0 },
    parked: { buffered: 0, taken: 0 },
  }
  const setAsideBytes = setAsidePart(settings.shards ?? 1)
  const pull = (spec: ConsumerSpec, messages: number): Stream.Stream<Delivery> => {
    const stream = streams[spec.part]
    const isSetAside = spec.part === "parked"
    const options = {
      counts: counts[spec.part],
      volume: storage.volumes[spec.part],
      connection,
      incoming,
      stream,
      consumer: spec.name,
      isSetAside,
      pull: messages,
      bytes: isSetAside ? setAsideBytes : intakeBytes,
      recover: (reason: string | undefined, failures: number) => recovery.consumer(spec, stream, reason, failures),
    }
    return deliveries(options, state)
  }

  const view = (): ConnectionView => {
    const refused = violations.current(Date.now()).map(({ more, operation, text }) => ({
      text: `refused (${operation}): ${text}${more === 0 ? "" : `, and ${more} more`}`,
      // Whom a request names as its `reply_to` is not the worker's affair, and it can do without a reserve.
      disabling: operation !== "copy" && operation !== "reserve",
    }))
    const { isSilent, isStoring, troubles } = storage.state()
    return {
      connected: isConnected(),
      attempts: state.attempts,
      troubles: [...refused, ...recovery.troubles, ...troubles.map((text) => ({ text, disabling: true }))],
      isStoring,
      isSilent,
      violations: violations.counts,
    }
  }
  return Broker.of({
    maxPayload,
    connection: view,
    closed,
    state: brokerState(jsm, settings, counts),
    appends: pull(intakeConsumer("logs", settings), appendsPull),
    queries: pull(intakeConsumer("query", settings), queriesPull),
    publish: (events) =>
      repairing("response")(
        storage.storeEvents(
          events.length,
          publishers.response(events, (event) => toMessage(settings.responseTopic, event), sizeOf),
        ),
      ),
    deadLetter: (delivery: Delivery, reason) =>
      delivery instanceof NatsDelivery
        ? Effect.suspend(() =>
            storage.store(
              "dead letters",
              publishMade(publishers.dead, deadLetterMessages(settings.deadTopic, delivery, reason, maxPayload())),
            ),
          ).pipe(repairing("dead"))
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
        return storage.store("parked requests", publishMade(publishers.parked, messages)).pipe(
          Effect.as<ReadonlyArray<Delivery>>(tooLarge),
          // They go back to the intake, where they have their room already.
          Effect.catchIf(isStoreFull, () => Effect.succeed(all)),
        )
      }).pipe(repairing("parked")),
    parked: (kind, shard) =>
      pull(parkedConsumer(kind, shard, settings), kind === "appends" ? appendsPull : queriesPull),
    retries: pull(retryConsumer(settings), appendsPull),
  })
})

/** The live broker. Building it waits for the server, and creates streams and consumers that are missing. */
export const NatsLive = (
  settings: NatsSettings,
): Layer.Layer<Broker, BrokerUnavailable | BrokerMisconfigured | BrokerClosed> => Layer.effect(Broker, make(settings))
