/** What the numbers of sessions and seconds have to do with each other. */
import { assert, describe, it } from "@effect/vitest"
import { connectSeconds } from "../../src/config/ConfigShards.ts"
import { stuckMillis } from "../../src/observe/Watchdog.ts"
import * as pipeline from "../../src/pipeline/limits.ts"
import * as limits from "../../src/shard/limits.ts"

describe("limits", () => {
  it("a worker's sessions fit, several times, in the 97 that PostgreSQL lets in by default", () => {
    assert.isAtMost(7 * limits.sessionsMax, 97)
  })

  it("the server gives up before the worker does", () => {
    const { operationSeconds, rollbackSeconds, sessionSeconds } = limits
    assert.isBelow(sessionSeconds.lock, sessionSeconds.statement)
    assert.isBelow(sessionSeconds.lock, rollbackSeconds)
    assert.isBelow(sessionSeconds.statement, operationSeconds)
    assert.isBelow(connectSeconds.longest, limits.verificationSeconds)
    assert.isBelow(limits.verificationSeconds, operationSeconds)
    assert.isBelow(limits.placeSeconds, operationSeconds)
  })

  it("an operation ends, also by giving up, long before its worker counts as stuck", () => {
    assert.isBelow(2 * limits.operationSeconds * 1_000, stuckMillis)
  })

  it("reads that the pipeline lets begin find a session", () => {
    assert.isAtMost(pipeline.readsPerShard, limits.readsAtOnce)
  })
})
