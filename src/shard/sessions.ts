/**
 * The sessions of one kind with a shard: each is lent to one operation at a time and kept for the next one.
 *
 * A session goes on being used only while it is known to be good. It is closed when its operation was interrupted, as
 * nobody knows what it is doing, and when a failure was its own fault (`isSessionFault`). In that case the idle ones go
 * with it, of all kinds, and so do those in use when they come back: they led to the same server. So a failover costs
 * one failure, and no session of before is used again.
 *
 * Rejected: the client's own pool. It sets up no session by statements, and keeps one for as long as its connection is
 * open, whatever its server answers; all that can be done from outside is to make another pool.
 */
import type { PgClient } from "@effect/sql-pg"
import { Cause, Effect, Exit, Scope } from "effect"
import type { SqlError } from "effect/sql"
import { healthSeconds, unusedLooksMax } from "./limits.ts"
import { isSessionFault, sqlErrorOf, unfit } from "./transient.ts"

/** A client of one connection, which lives in the scope, and which pipelines what is sent to it at the same time. */
export interface Connected {
  readonly sql: PgClient.PgClient
  /** Fails where the session is no longer what it was made to be. */
  readonly isFit: Effect.Effect<void, SqlError.SqlError>
}

export type Connect = Effect.Effect<Connected, SqlError.SqlError, Scope.Scope>

/** A session as who it is lent to sees it. */
export interface Session extends Connected {
  /** It is in a state that nobody knows: it is closed, and not lent again. */
  readonly discard: () => void
}

export interface Sessions {
  readonly use: <A, E>(run: (session: Session) => Effect.Effect<A, E>) => Effect.Effect<A, E | SqlError.SqlError>
  /**
   * Asks every idle session, or a new one where none is idle; closes those that were not used for long. One that does not
   * answer in time counts as useless, like one whose answer is its own fault.
   */
  readonly look: <E>(ask: (session: Session) => Effect.Effect<void, E>) => Effect.Effect<void, E | SqlError.SqlError>
}

interface Kept extends Session {
  readonly scope: Scope.Closeable
  readonly epoch: number
  isDiscarded: boolean
  unusedLooks: number
}

/**
 * Makes the kinds of sessions of one shard. An epoch lasts until one of them turns out to be useless; `ended` is told. All
 * are closed with the scope.
 */
export const sessionsOfShard = (ended: () => void) => {
  let epoch = 0
  const kinds: Array<Array<Kept>> = []

  const close = ({ scope }: Kept) => Scope.close(scope, Exit.void)
  const closeAll = (idle: Array<Kept>) => Effect.suspend(() => Effect.forEach(idle.splice(0), close, { discard: true }))

  const endEpoch = Effect.suspend(() => {
    epoch++
    ended()
    return Effect.forEach(kinds, closeAll, { discard: true })
  })

  /** Closes what is of no more use after a failure. */
  const blame = (session: Kept, cause: Cause.Cause<unknown>): Effect.Effect<void> => {
    if (Cause.hasInterrupts(cause) || Cause.hasDies(cause)) session.discard()
    const error = sqlErrorOf(cause)
    if (error === undefined || !isSessionFault(error)) return Effect.void
    session.discard()
    return session.epoch === epoch ? endEpoch : Effect.void
  }

  /** Keeps up to `keptMax` sessions, idle ones and those in use; any more are closed after their use. */
  return Effect.fnUntraced(function* (
    connect: Connect,
    keptMax: number,
  ): Effect.fn.Return<Sessions, never, Scope.Scope> {
    const idle: Array<Kept> = []
    let inUse = 0
    let closed = false
    kinds.push(idle)
    yield* Effect.addFinalizer(() => {
      closed = true
      return closeAll(idle)
    })

    const open: Effect.Effect<Kept, SqlError.SqlError> = Effect.flatMap(Scope.make(), (scope) => {
      // Of the time before it is connected: where an epoch ends meanwhile, nobody knows which one this belongs to.
      const since = epoch
      return connect.pipe(
        Effect.provideService(Scope.Scope, scope),
        Effect.map((connected) => {
          const kept: Kept = {
            ...connected,
            scope,
            epoch: since,
            isDiscarded: false,
            unusedLooks: 0,
            discard: () => {
              kept.isDiscarded = true
            },
          }
          return kept
        }),
        Effect.onError((cause) => Scope.close(scope, Exit.failCause(cause))),
      )
    })

    const giveBack = (session: Kept): Effect.Effect<void> => {
      const isKept = !session.isDiscarded && session.epoch === epoch && !closed && idle.length + inUse < keptMax
      return isKept ? Effect.sync(() => void idle.push(session)) : close(session)
    }

    /** Lends what `take` gives, or a new session, and takes it back. */
    const lend = <A, E>(take: () => Kept | undefined, run: (session: Session) => Effect.Effect<A, E>) =>
      Effect.uninterruptibleMask((restore) =>
        Effect.gen(function* () {
          inUse++
          const session = take() ?? (yield* Effect.onError(restore(open), () => Effect.sync(() => inUse--)))
          const exit = yield* Effect.exit(restore(run(session)))
          inUse--
          if (Exit.isFailure(exit)) yield* blame(session, exit.cause)
          yield* giveBack(session)
          return yield* exit
        }),
      )

    const use: Sessions["use"] = (run) =>
      lend(() => {
        const session = idle.pop()
        if (session !== undefined) session.unusedLooks = 0
        return session
      }, run)

    const taken = (session: Kept): Kept | undefined => {
      const at = idle.indexOf(session)
      return at < 0 ? undefined : idle.splice(at, 1)[0]
    }

    const closing = ({ discard }: Session) => Effect.sync(discard)

    return {
      use,
      look: Effect.fnUntraced(function* (ask) {
        const answer = (session: Session) =>
          Effect.timeoutOrElse(ask(session), {
            duration: `${healthSeconds.answer} seconds`,
            orElse: () => Effect.fail(unfit("timeout", "a session did not answer in time")),
          })
        const seen = idle.slice()
        if (seen.length === 0) return yield* use(answer)
        // Oldest first, and each goes to the end: their order stays.
        for (const session of seen) {
          // Not one that was lent or closed meanwhile.
          if (!idle.includes(session)) continue
          const isSurplus = ++session.unusedLooks > unusedLooksMax && idle.length > 1
          yield* lend(() => taken(session), isSurplus ? closing : answer)
        }
      }),
    }
  })
}
