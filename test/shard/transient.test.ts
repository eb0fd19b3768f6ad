import { PgTypes } from "@effect/sql-pg"
import { assert, describe, it } from "@effect/vitest"
import { Cause, Effect, Exit } from "effect"
import { SqlError } from "effect/sql"
import {
  classify,
  classifyRead,
  defectAsFailure,
  isConflict,
  isDataFault,
  isSessionFault,
  unfit,
} from "../../src/shard/transient.ts"

const withCode = (code: string, message = "refused") =>
  new SqlError.SqlError({ reason: new SqlError.UnknownError({ cause: Object.assign(new Error(message), { code }) }) })

describe("transient", () => {
  it("blames the data for classes 22, 23 and 54 only", () => {
    for (const code of ["22000", "22021", "22P05", "23505", "23514", "54000"]) assert.isTrue(isDataFault(code), code)
    const others = "08006 40001 40P01 53100 53300 55P03 57014 57P01 57P03 58030 XX000 42P01 25006 28P01 0A000 26000"
    for (const code of others.split(" ")) assert.isFalse(isDataFault(code), code)
    assert.isFalse(isDataFault(undefined))
  })

  it("a read that fails for a reason of its own is no outage of its shard", () => {
    for (const code of ["22021", "54000", "57014", "XX001", "XX002"]) {
      assert.strictEqual(classifyRead("a", withCode(code))._tag, "ReadRejected", code)
    }
    for (const code of ["XX000", "57P01", "53300", "40001", "08006"]) {
      assert.strictEqual(classifyRead("a", withCode(code))._tag, "ShardUnavailable", code)
    }
  })

  it("labels what it classifies", () => {
    const rejected = classify("a", "append", withCode("22021"))
    assert.isTrue(rejected._tag === "BatchRejected" && rejected.sqlState === "22021")
    const starting = classify("a", "append", withCode("57P03"))
    assert.isTrue(starting._tag === "ShardUnavailable" && starting.reason === "57P03")
    const lost = new SqlError.SqlError({ reason: new SqlError.ConnectionError({ cause: new Error("gone") }) })
    const unavailable = classify("a", "append", lost)
    assert.isTrue(unavailable._tag === "ShardUnavailable" && unavailable.reason === "connection")
    // Node's codes are no SQLSTATEs.
    const refused = new SqlError.SqlError({
      reason: new SqlError.ConnectionError({ cause: Object.assign(new Error("refused"), { code: "ECONNREFUSED" }) }),
    })
    assert.strictEqual(classify("a", "append", refused)._tag, "ShardUnavailable")
  })

  it("knows whose fault it is that a session is of no more use", () => {
    for (const code of "25006 57P01 57P02 57P03 57P04 57P05 08000 08006 08P01 25P03 25P04 26000".split(" ")) {
      assert.isTrue(isSessionFault(withCode(code)), code)
    }
    assert.isTrue(
      isSessionFault(new SqlError.SqlError({ reason: new SqlError.ConnectionError({ cause: new Error("gone") }) })),
    )
    assert.isTrue(isSessionFault(unfit("settings", "gone")))
    for (const code of "22021 23505 25P02 40001 40P01 42501 42P01 53100 53300 55P03 57014 58030 XX000".split(" ")) {
      assert.isFalse(isSessionFault(withCode(code)), code)
    }
  })

  it("takes what the client could not encode for the data's fault, and what it could not decode for the session's", () => {
    const failed = (message: string) =>
      new SqlError.SqlError({
        reason: new SqlError.UnknownError({ cause: new PgTypes.CodecError({ message: "out of range" }), message }),
      })
    assert.strictEqual(classify("a", "append", failed("PgConnection: Failed to encode query"))._tag, "BatchRejected")
    assert.isTrue(isSessionFault(failed("PgConnection: Failed to decode row")))
  })

  it("repeats deadlocks and serialisation failures at once", () => {
    assert.isTrue(isConflict(withCode("40P01")) && isConflict(withCode("40001")))
    assert.isFalse(isConflict(withCode("55P03")))
  })

  it("keeps secrets out of what it says", () => {
    const error = classify("a", "append", withCode("08001", "cannot reach postgres://user:secret@host/db"))
    assert.notInclude(error.message, "secret")
    assert.notInclude(JSON.stringify(error), "secret")
  })

  it.effect("makes a lost connection a failure, and leaves other defects and interruption alone", () =>
    Effect.gen(function* () {
      const lost = withCode("57P01")
      assert.strictEqual(yield* Effect.flip(defectAsFailure(Effect.die(lost))), lost)
      const bug = yield* Effect.exit(defectAsFailure(Effect.die(new Error("bug"))))
      assert.isTrue(Exit.isFailure(bug) && Cause.hasDies(bug.cause))
      const interrupted = yield* Effect.exit(defectAsFailure(Effect.interrupt))
      assert.isTrue(Exit.isFailure(interrupted) && Cause.hasInterrupts(interrupted.cause))
    }),
  )
})
