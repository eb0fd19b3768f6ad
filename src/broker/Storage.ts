/** The store of the broker as a worker has to care for it: kept small, made room in, and watched. */
import type { JetStreamManager } from "@nats-io/jetstream"
import { Effect, type Scope } from "effect"
import type { BrokerUnavailable } from "./Broker.ts"
import type { Topics } from "./provision.ts"
import type { PublishAll } from "../nats/publish.ts"
import { isSilence, isStoreFull } from "../nats/jetStreamErrors.ts"
import { makeReserve } from "./Reserve.ts"
import { makeRoom } from "./Room.ts"
import { type StorageState, Storing } from "./Storing.ts"
import type { PurgedRole, StreamRole } from "./streamRules.ts"
import { runUpkeep } from "./Upkeep.ts"
import { Volume } from "./Volume.ts"

export interface Storage {
  readonly state: () => StorageState
  /** What the consumers of each stream report to, as it makes upkeep due. */
  readonly volumes: Record<PurgedRole, Volume>
  /**
   * Has something stored; `what` names it for an operator. Makes room where there is none, and fails with the refusal only
   * when nothing is left to give up.
   */
  readonly store: (
    what: string,
    publish: Effect.Effect<void, BrokerUnavailable>,
  ) => Effect.Effect<void, BrokerUnavailable>
  /**
   * The same for events. Where nothing is left to give up it succeeds: the refusal comes after the broker has sent them to
   * those who listen, and to wait for room would be for ever, since only what is finished makes some.
   */
  readonly storeEvents: (
    count: number,
    publish: Effect.Effect<void, BrokerUnavailable>,
  ) => Effect.Effect<void, BrokerUnavailable>
}

export interface StorageOptions {
  readonly jsm: JetStreamManager
  readonly topics: Topics
  /** Stores the reserve. */
  readonly publish: PublishAll<BrokerUnavailable>
  readonly maxPayload: () => number
  readonly isConnected: () => boolean
  /** Of the server, such as `2.9.10`; `undefined` without a connection. */
  readonly version: () => string | undefined
  /** Called when the connection was made again. */
  readonly reconnects: Set<() => void>
  /** The present name of the stream of a part. */
  readonly nameOf: (role: StreamRole) => string
}

/** Runs the upkeep until the scope closes. */
export const makeStorage = Effect.fnUntraced(function* (
  options: StorageOptions,
): Effect.fn.Return<Storage, never, Scope.Scope> {
  const { isConnected, reconnects } = options
  const storing = new Storing(isConnected)
  const reconnected = () => storing.reconnected()
  reconnects.add(reconnected)
  yield* Effect.addFinalizer(() => Effect.sync(() => reconnects.delete(reconnected)))
  const reserve = makeReserve(options)
  const room = makeRoom({ ...options, reserve, storing })
  const volumes = { logs: new Volume(), query: new Volume(), parked: new Volume() }
  yield* Effect.forkScoped(runUpkeep({ ...options, volumes, reserve, room, storing }))

  const store: Storage["store"] = (what, publish) => storing.heard(what, room.stored(publish), isSilence)
  return {
    state: storing.state,
    volumes,
    store,
    storeEvents: (count, publish) =>
      Effect.catchIf(store("events", publish), isStoreFull, () => Effect.sync(() => storing.notKept(count))),
  }
})
