/** The mistakes of mutants.ts can still be made: what they change stands once in its file, and their tests exist. */
import { assert, it } from "@effect/vitest"
import { existsSync, readFileSync } from "node:fs"
import { fileURLToPath } from "node:url"
import { groups } from "./mutants.ts"

const root = fileURLToPath(new URL("../../", import.meta.url))

it("what each changes stands once in its file, and its tests are there", () => {
  const wrong = groups.flatMap(({ changes, file, tests }) => {
    const source = readFileSync(`${root}src/${file}`, "utf8")
    return [
      ...tests.filter((test) => !existsSync(root + test)),
      ...changes.filter(([from]) => source.split(from).length !== 2).map(([from]) => `${file}: ${from}`),
    ]
  })
  assert.deepStrictEqual(wrong, [])
  assert.isAtLeast(
    groups.reduce((sum, { changes }) => sum + changes.length, 0),
    150,
  )
})
