/**
 * How many sessions a worker has with one shard, how long it waits for one, and what each is told; with reasons.
 * What the numbers have to do with each other is checked where the program begins, at the end of this file.
 */
import { ok } from "node:assert"
import { connectSeconds } from "../config/ConfigShards.ts"

/** A lane appends one batch at a time. Appends wait for no read, and no read for an append. */
export const appendsAtOnce = 1

/** A page takes milliseconds: more of them at once wait for the same processors and disk. */
export const readsAtOnce = 8

/** Health asks on sessions like those of the work, and waits for neither: one more of each kind. */
const healthSessions = 2

/** A verification compares two sessions of its own: see `verify.ts`. */
const verificationSessions = 2

/** What a worker may open to a shard: so many times the number of workers has to fit in `max_connections`. */
export const sessionsMax = appendsAtOnce + readsAtOnce + healthSessions + verificationSessions

/** A session that was not used through so many looks of health (a minute) is closed, but for the last one. */
export const unusedLooksMax = 12

/** A place among the operations of a kind is waited for so long. */
export const placeSeconds = 10

/** What a session waits for a lock, and a statement may take; what an open transaction may wait for its worker. */
export const sessionSeconds = { lock: 5, statement: 30, idleInTransaction: 10 }

/** Longer than a statement may take: only a server that does not answer at all gets here. */
export const operationSeconds = 45

/** A server that waits for a lock answers in less; what does not is not told to roll back, but left. */
export const rollbackSeconds = 10

/** A step of a verification, but for a migration: nothing more is asked of a server that does not answer within this. */
export const verificationSeconds = 15

/** A look of health, which is shorter than the time between two; and what one idle session may take of it to answer. */
export const healthSeconds = { look: 3, answer: 2 }

ok(sessionSeconds.lock < sessionSeconds.statement, "a lock is waited for within a statement")
ok(sessionSeconds.statement < operationSeconds, "the server gives up before the worker does")
ok(sessionSeconds.lock < rollbackSeconds, "a server that only waits for a lock is told to roll back")
ok(connectSeconds.longest < verificationSeconds, "a verification may connect")
ok(
  verificationSeconds < operationSeconds && placeSeconds < operationSeconds,
  "an operation waits less than it may take",
)
ok(healthSeconds.answer < healthSeconds.look, "a look of health goes on after a session that doesn't answer")
