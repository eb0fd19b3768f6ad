/**
 * Notices what holds work and does not move: a pull that brings nothing although requests wait, a fiber that is dead or
 * waits for what never comes, an event loop that is blocked.
 *
 * Waiting is not being stuck. A lane whose shard is down repeats its transaction, a worker whose broker is away has
 * nothing to go by as long as it tries to connect again, and a shard's appends that were handed back come again within about a minute: all of that is
 * movement, or excused, or far shorter than `stuckMillis`.
 */
import { ok } from "node:assert"
import { operationSeconds } from "../shard/limits.ts"

/** What a part shows at one moment. */
export interface Sight {
  readonly name: string
  readonly held: number
  readonly moves: number
  /** Whether it may wait for a broker that is away; `true` where it is not said. */
  readonly excusable?: boolean
}

/** A part is stuck when it holds work and has not moved for this long. An operation of a shard ends within 45 s, the longest delay of a handed back request is 72 s. */
export const stuckMillis = 120_000

ok(
  stuckMillis > 2 * operationSeconds * 1_000,
  "an operation ends, also by giving up, long before its worker counts as stuck",
)

/** A look that comes so much later than planned: nothing else ran in that time either. */
export const blockedMillis = 10_000

interface Seen extends Sight {
  /** When it last moved, or held nothing. */
  readonly since: number
}

export class Watchdog {
  #seen = new Map<string, Seen>()
  /** When the next look is due. */
  #due: number | undefined
  #blockedMillis = 0

  /** Looks at all parts; `excused`: the broker is known to be away. The next look is planned for `due`. */
  look(parts: Iterable<Sight>, now: number, due: number, excused: boolean): void {
    this.#blockedMillis = this.#late(now)
    this.#due = due
    const seen = new Map<string, Seen>()
    for (const part of parts) {
      const before = this.#seen.get(part.name)
      const isExcused = excused && part.excusable !== false
      const moved = isExcused || part.held === 0 || before === undefined || before.moves !== part.moves
      seen.set(part.name, { ...part, since: moved ? now : before.since })
    }
    this.#seen = seen
  }

  #late(now: number): number {
    return this.#due === undefined ? 0 : Math.max(0, now - this.#due)
  }

  /** What is wrong, in words; empty when all is well. */
  findings(now: number): ReadonlyArray<string> {
    const found: Array<string> = []
    const blocked = Math.max(this.#blockedMillis, this.#late(now))
    if (blocked >= blockedMillis) found.push(`event loop: blocked, the last look came ${seconds(blocked)} late`)
    for (const { held, name, since } of this.#seen.values()) {
      if (held > 0 && now - since >= stuckMillis) {
        found.push(`${name}: holds ${held} and has not moved for ${seconds(now - since)}`)
      }
    }
    return found
  }
}

const seconds = (millis: number): string => `${Math.round(millis / 1000)} s`
