/** The broker on NATS JetStream. */
import { type JetStreamManager, jetstreamManager } from "@nats-io/jetstream"
import { connect, type NatsConnection } from "@nats-io/transport-node"
import { Effect, Layer, Schedule, type Stream } from "effect"
import { Broker, BrokerClosed, BrokerUnavailable, type ConnectionView, type Delivery } from "./Broker.ts"
import { brokerState } from "./brokerState.ts"
import { connectionEnd, type ConnectionState, watchConnection } from "../nats/connection.ts"
import { connectionOptions } from "../nats/connectionOptions.ts"
import type { ConsumerSpec } from "./consumerRules.ts"
import { deliveries } from "./deliveries.ts"
import { Incoming } from "../nats/Incoming.ts"
import { insideProblem } from "../nats/inside.ts"
import { appendsPull, intakeBytes, queriesPull, parkedShareBytes } from "./intakeLimits.ts"
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
import { makePublisher } from "../nats/publish.ts"
import { makePublishing, publishFailed } from "./publishing.ts"
import { Recovery, recoveryPauses } from "./Recovery.ts"
import { parkedTopic, reserveTopic } from "../contract/Topics.ts"
import { makeStorage, type Storage } from "./Storage.ts"
import { StreamLives } from "./StreamLife.ts"
import type { PurgedRole } from "./streamRules.ts"
import { Violations } from "./Violations.ts"

export interface NatsSettings extends Topics {
  /** Comma-separated server list; may carry credentials, so it is never shown. */
  readonly servers: string
  readonly connectionName: string
  /** How many shards there are: each has its part of the memory for what was parked. Default: 1. */
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
  const problem = insideProblem(connection)
  if (problem !== undefined) return yield* new BrokerClosed({ reason: problem })
  const state = yield* watchConnection(connection, (text, type) =>
    type === "reconnect" ? Effect.logInfo(text) : Effect.logWarning(text),
  )
  return { connection, state }
})

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

/** What the broker is made of, for the functions below. */
interface Inner {
  readonly settings: NatsSettings
  readonly connection: NatsConnection
  readonly state: ConnectionState
  readonly incoming: Incoming
  readonly recovery: Recovery
  readonly storage: Storage
  readonly streams: Readonly<Record<PurgedRole, StreamLives>>
}

const isUp = ({ connection, state }: Pick<Inner, "connection" | "state">): boolean =>
  state.connected && !connection.isClosed()

/** The server's `max_payload`, in bytes. While the connection is being made again the last one counts. */
const maxPayloadOf = (connection: NatsConnection): (() => number) => {
  let last = 1024 * 1024
  const maxPayload = () => (last = connection.info?.max_payload ?? last)
  maxPayload()
  return maxPayload
}

/** What there must be, once it is there. A misconfiguration stops the worker now; later it waits until that is put right. */
const provisioned = Effect.fnUntraced(function* (
  jsm: JetStreamManager,
  settings: NatsSettings,
  closed: Effect.Effect<never, BrokerClosed>,
) {
  const found = yield* provision(jsm, settings).pipe(
    Effect.tapErrorTag("BrokerUnavailable", (error) => Effect.logWarning(`${error.message}; trying again`)),
    Effect.retry({ schedule: recoveryPauses, while: (error) => error._tag === "BrokerUnavailable" }),
    Effect.raceFirst(closed),
  )
  yield* remarkOnStreams(jsm, settings)
  return found
})

/** The streams of deliveries, and what they hold. */
const makePulls = ({ connection, incoming, recovery, settings, state, storage, streams }: Inner) => {
  const counts = {
    logs: { buffered: 0, taken: 0 },
    query: { buffered: 0, taken: 0 },
    parked: { buffered: 0, taken: 0 },
  }
  const parkedBytes = parkedShareBytes(settings.shards ?? 1)
  const pull = (spec: ConsumerSpec, messages: number): Stream.Stream<Delivery> => {
    const stream = streams[spec.role]
    const isParked = spec.role === "parked"
    const options = {
      counts: counts[spec.role],
      volume: storage.volumes[spec.role],
      connection,
      incoming,
      stream,
      consumer: spec.name,
      isParked,
      pull: messages,
      bytes: isParked ? parkedBytes : intakeBytes,
      recover: (reason: string | undefined, failures: number) => recovery.consumer(spec, stream, reason, failures),
    }
    return deliveries(options, state)
  }
  return { counts, pull }
}

const viewOf = ({ recovery, storage, ...wire }: Inner, violations: Violations): ConnectionView => {
  const refused = violations.current(Date.now()).map(({ more, operation, text }) => ({
    text: `refused (${operation}): ${text}${more === 0 ? "" : `, and ${more} more`}`,
    // Whom a request names as its `reply_to` is not the worker's affair, and it can do without a reserve.
    disabling: operation !== "copy" && operation !== "reserve",
  }))
  const { isSilent, isStoring, troubles } = storage.state()
  return {
    connected: isUp(wire),
    attempts: wire.state.attempts,
    troubles: [...refused, ...recovery.troubles, ...troubles.map((text) => ({ text, disabling: true }))],
    isStoring,
    isSilent,
    violations: violations.counts,
  }
}

const make = Effect.fnUntraced(function* (settings: NatsSettings) {
  const { connection, state } = yield* connected(settings)
  const closed = Effect.mapError(connectionEnd(connection, state), ({ reason }) => new BrokerClosed({ reason }))
  const violations = yield* watchViolations(state, settings)
  const jsm = yield* attempt("JetStream", () => jetstreamManager(connection, { checkAPI: false }))
  const maxPayload = maxPayloadOf(connection)
  const found = yield* provisioned(jsm, settings, closed)
  const outgoing = new Outgoing(connection)
  const incoming = new Incoming(connection)
  const recovery = new Recovery(jsm, state, settings, maxPayload)

  const lives = Effect.fnUntraced(function* (role: PurgedRole) {
    const stream = new StreamLives(found[role], () => state.connected, outgoing)
    // The first to hear of it: before anything of the stream is settled or pulled.
    state.onReconnect.add(() => stream.doubt())
    yield* Effect.forkScoped(stream.keep(recovery.stream(role)))
    return stream
  })
  const streams = { logs: yield* lives("logs"), query: yield* lives("query"), parked: yield* lives("parked") }

  // Windows of their own, so that a stream that confirms nothing does not hold up what goes to the others.
  const publisher = makePublisher(connection, outgoing, incoming, state, publishFailed)
  const publishers = { response: yield* publisher, dead: yield* publisher, parked: yield* publisher }
  const storage = yield* makeStorage({
    jsm,
    topics: settings,
    publish: yield* publisher,
    maxPayload,
    isConnected: () => isUp({ connection, state }),
    version: () => connection.info?.version,
    reconnects: state.onReconnect,
    nameOf: (role) => (role === "response" || role === "dead" ? found[role].name : streams[role].name),
  })

  const inner: Inner = { settings, connection, state, incoming, recovery, storage, streams }
  const { counts, pull } = makePulls(inner)
  return Broker.of({
    maxPayload,
    connection: () => viewOf(inner, violations),
    closed,
    state: brokerState(jsm, settings, counts),
    appends: pull(intakeConsumer("logs", settings), appendsPull),
    queries: pull(intakeConsumer("query", settings), queriesPull),
    parked: (kind, shard) =>
      pull(parkedConsumer(kind, shard, settings), kind === "appends" ? appendsPull : queriesPull),
    retries: pull(retryConsumer(settings), appendsPull),
    ...makePublishing({ publishers, topics: settings, storage, recovery, maxPayload }),
  })
})

/** The live broker. Building it waits for the server, and creates streams and consumers that are missing. */
export const NatsLive = (
  settings: NatsSettings,
): Layer.Layer<Broker, BrokerUnavailable | BrokerMisconfigured | BrokerClosed> => Layer.effect(Broker, make(settings))
