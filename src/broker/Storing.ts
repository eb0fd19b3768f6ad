/**
 * What this worker knows of how the broker stores what is sent: for readiness, for the metric, and for who may restart the
 * server.
 *
 * *Full*: it refuses for lack of room. That ends when something is deleted. *Silent*: connected, and yet it confirms nothing.
 * A nats-server whose disk was full goes on like that when the disk has room again: 2.9 answers nothing any more, 2.15
 * confirms nothing on the streams that met the full disk. Only a restart helps. *Changed*: somebody gave a stream or
 * consumer another configuration, so that it does not keep what it should.
 */
import { Effect, Latch } from "effect"

export interface StorageState {
  /** Neither full nor silent. */
  readonly isStoring: boolean
  /** Everything that is wrong, in words. */
  readonly troubles: ReadonlyArray<string>
  readonly isSilent: boolean
}

/** Silence of this length is no accident of a moment: a publish takes that long to find out alone. */
const silentMillis = 15_000

const seconds = (millis: number): string => `${Math.round(millis / 1_000)} s`

/**
 * A store is full until nothing was refused for so long, so that one that fills again and again is not said to have room
 * each time: where the reserve could be made again, and where there is none to tell.
 */
const quietMillis = { withReserve: 5_000, without: 30_000 }

/** What waits for room is tried again within this time. */
const calmMillis = 1_000

export class Storing {
  readonly #isConnected: () => boolean
  readonly #now: () => number
  #full: { readonly reason: string; readonly since: number } | undefined
  /** When something was refused last for which somebody waits. */
  #waitedAt = 0
  #notKept = 0
  /** Open while the store is full. */
  readonly full = Latch.makeUnsafe(false)
  /** What is not confirmed or answered, and since when. */
  readonly #silent = new Map<string, number>()
  #connectedAt = 0
  readonly #changed = new Map<string, string>()

  constructor(isConnected: () => boolean, now: () => number = Date.now) {
    this.#isConnected = isConnected
    this.#now = now
  }

  /** The store refused something, for which somebody waits, or the reserve. */
  refused(reason: string, isWaited: boolean): Effect.Effect<void> {
    return Effect.suspend(() => {
      const now = this.#now()
      if (isWaited) this.#waitedAt = now
      if (this.#full !== undefined) return Effect.void
      this.#full = { reason, since: now }
      this.full.openUnsafe()
      return Effect.logWarning(
        `broker: its store is full (${reason}), and publishers are refused; what is done, and then the oldest events, give way to what has to be stored`,
      )
    })
  }

  /** Events were sent to those who listen, and there was no room to keep them. */
  notKept(events: number): void {
    this.#notKept += events
  }

  /** Whether nobody here waits for room. */
  readonly isCalm = (): boolean => this.#now() - this.#waitedAt >= calmMillis

  /** Nothing speaks against room, and perhaps a whole reserve for it. */
  hasRoom(reserve: keyof typeof quietMillis): Effect.Effect<void> {
    return Effect.suspend(() => {
      const now = this.#now()
      if (this.#full === undefined || now - this.#waitedAt < quietMillis[reserve]) return Effect.void
      const { since } = this.#full
      const lost = this.#notKept === 0 ? "" : `; ${this.#notKept} events were sent and not kept`
      this.#full = undefined
      this.full.closeUnsafe()
      this.#notKept = 0
      return Effect.logInfo(`broker: its store has room again, after ${seconds(now - since)}${lost}`)
    })
  }

  /** Runs what the broker has to confirm or answer, and remembers since when it has not. */
  heard<A, E, R>(what: string, self: Effect.Effect<A, E, R>, isSilence: (error: E) => boolean): Effect.Effect<A, E, R> {
    return Effect.suspend(() => {
      const began = this.#now()
      const forget = Effect.sync(() => void this.#silent.delete(what))
      return self.pipe(
        Effect.tap(forget),
        Effect.tapError((error) =>
          Effect.suspend(() => {
            // Without a connection that is the connection's fault, and told as such.
            if (!this.#isConnected() || !isSilence(error)) return forget
            if (!this.#silent.has(what)) this.#silent.set(what, Math.max(began, this.#connectedAt))
            return Effect.void
          }),
        ),
      )
    })
  }

  /** What a stream has become, if it can't serve any more; said when that is news. */
  changed(stream: string, problem: string | undefined): Effect.Effect<void> {
    return Effect.suspend(() => {
      if (problem === this.#changed.get(stream)) return Effect.void
      if (problem !== undefined) {
        this.#changed.set(stream, problem)
        return Effect.logError(`stream ${stream}: ${problem}; nothing is purged from it until that is put right`)
      }
      this.#changed.delete(stream)
      return Effect.logInfo(`stream ${stream}: is as it has to be again`)
    })
  }

  /** The connection was made again; nothing is known of the server. */
  reconnected(): void {
    this.#silent.clear()
    this.#connectedAt = this.#now()
  }

  readonly state = (): StorageState => {
    const now = this.#now()
    const silent = this.#isConnected()
      ? Array.from(this.#silent).filter(([, since]) => now - since >= silentMillis)
      : []
    const troubles = Array.from(this.#changed, ([stream, problem]) => `stream ${stream}: ${problem}`)
    if (this.#full !== undefined) troubles.push(`its store is full: ${this.#full.reason}`)
    for (const [what, since] of silent) {
      troubles.push(
        `no answer to ${what} for ${seconds(now - since)} although it is connected; if its disk was full, it has to be restarted`,
      )
    }
    return {
      isStoring: this.#full === undefined && silent.length === 0,
      troubles,
      isSilent: silent.length > 0,
    }
  }
}
