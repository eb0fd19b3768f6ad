import { assert, describe, it } from "@effect/vitest"
import { blockedMillis, type Sight, stuckMillis, Watchdog } from "../../src/observe/Watchdog.ts"

const every = 5_000

/** Looks on time until `until`, at what `parts` shows at each moment. */
const watch = (watchdog: Watchdog, from: number, until: number, parts: (now: number) => ReadonlyArray<Sight>) => {
  for (let now = from; now <= until; now += every) watchdog.look(parts(now), now, now + every, false)
}

const part = (held: number, moves: number, name = "lane of a"): Sight => ({ name, held, moves })

describe("the watchdog", () => {
  it("finds what holds work and does not move, once it has done so for long enough", () => {
    const watchdog = new Watchdog()
    watch(watchdog, 0, stuckMillis - every, () => [part(7, 1), part(1, 1, "reads of b")])
    assert.deepStrictEqual(watchdog.findings(stuckMillis - every), [])
    watch(watchdog, stuckMillis, stuckMillis, () => [part(7, 1), part(1, 2, "reads of b")])
    assert.deepStrictEqual(watchdog.findings(stuckMillis), ["lane of a: holds 7 and has not moved for 120 s"])
    watch(watchdog, stuckMillis + every, stuckMillis + every, () => [part(7, 2)])
    assert.deepStrictEqual(watchdog.findings(stuckMillis + every), [])
  })

  it("lets rest what holds nothing, however long", () => {
    const watchdog = new Watchdog()
    watch(watchdog, 0, 3_600_000, () => [part(0, 1)])
    watch(watchdog, 3_605_000, 3_605_000, () => [part(3, 1)])
    assert.deepStrictEqual(watchdog.findings(3_605_000), [])
  })

  it("takes attempts that fail for movement", () => {
    const watchdog = new Watchdog()
    watch(watchdog, 0, 3_600_000, (now) => [part(500, Math.floor(now / 50_000))])
    assert.deepStrictEqual(watchdog.findings(3_600_000), [])
  })

  it("excuses nothing that needs no broker", () => {
    const watchdog = new Watchdog()
    const parts = [part(1, 1), { ...part(1, 1, "event loop"), excusable: false }]
    for (let now = 0; now <= stuckMillis; now += every) watchdog.look(parts, now, now + every, true)
    assert.deepStrictEqual(watchdog.findings(stuckMillis), ["event loop: holds 1 and has not moved for 120 s"])
  })

  it("starts anew when what they waited for was away", () => {
    const watchdog = new Watchdog()
    watch(watchdog, 0, stuckMillis - every, () => [part(1, 1)])
    watchdog.look([part(1, 1)], stuckMillis, stuckMillis + every, true)
    watch(watchdog, stuckMillis + every, 2 * stuckMillis - every, () => [part(1, 1)])
    assert.deepStrictEqual(watchdog.findings(2 * stuckMillis - every), [])
    watch(watchdog, 2 * stuckMillis, 2 * stuckMillis, () => [part(1, 1)])
    assert.lengthOf(watchdog.findings(2 * stuckMillis), 1)
  })

  it("notices that nothing ran, while it lasts and until the next look that is on time", () => {
    const watchdog = new Watchdog()
    watch(watchdog, 0, 10_000, () => [])
    const due = 10_000 + every
    assert.deepStrictEqual(watchdog.findings(due + blockedMillis - 1), [])
    const late = due + blockedMillis
    assert.deepStrictEqual(watchdog.findings(late), ["event loop: blocked, the last look came 10 s late"])
    watchdog.look([], late, late + every, false)
    assert.lengthOf(watchdog.findings(late + 1), 1)
    watchdog.look([], late + every, late + 2 * every, false)
    assert.deepStrictEqual(watchdog.findings(late + every), [])
  })
})
