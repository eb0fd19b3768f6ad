/** What reaches a terminal, and who writes to one. */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Schema } from "effect"
import { readdirSync, readFileSync } from "node:fs"
import { escapeLog, jsonLine, messageLine, messageLines } from "../../src/cli/terminal.ts"

const evil = "a\n\t\u001b]0;x\u0007\u009b2J\u202e\u2066\u061c\u2028\ud800\\é😀"

describe("for a terminal", () => {
  it("a text is one line, from which it can be told again", () => {
    assert.strictEqual(escapeLog(evil, true), "a\\n\\t\\x1b]0;x\\x07\\x9b2J\\u202e\\u2066\\u061c\\u2028\\ud800\\\\é😀")
    assert.strictEqual(escapeLog("a\nb\\n\t\u001b[31m\ud800é😀", false), "a\\nb\\\\n\t\u001b[31m\\ud800é😀")
  })

  it("a message can't begin another line, nor a line of a stack a control sequence", () => {
    assert.strictEqual(messageLine("C:\\x\u001b[1m\nobjectlog: ok", true), "C:\\x\\x1b[1m\\nobjectlog: ok")
    assert.strictEqual(messageLine("\u001b[1m\r\nobjectlog: ok", false), "\u001b[1m\\r\\nobjectlog: ok")
    assert.strictEqual(messageLines("Error: \u001b[1m\n  at x", true), "Error: \\x1b[1m\n  at x")
  })

  it.effect.prop("JSON stays the same value", [Schema.String], ([text]) =>
    Effect.sync(() => {
      // Between its tokens, as a stranger may send it.
      const json = `{\r\n\t"k": ${JSON.stringify(`${text}${evil}`)}\n}`
      const shown = jsonLine(json, true)
      assert.notMatch(shown, /\p{Cc}|\p{Bidi_Control}|[\u2028\u2029]/u)
      assert.deepStrictEqual(JSON.parse(shown), JSON.parse(json))
      assert.deepStrictEqual(JSON.parse(jsonLine(json, false)), JSON.parse(json))
      assert.notInclude(jsonLine(json, false), "\n")
    }),
  )

  it("JSON for a pipe is what came", () => {
    const json = JSON.stringify({ log: "\u009b\u202e\u007f" })
    assert.strictEqual(jsonLine(json, false), json)
    assert.strictEqual(jsonLine(json, true), '{"log":"\\u009b\\u202e\\u007f"}')
  })
})

describe("the program", () => {
  it("prints in one place, which knows what a terminal obeys", () => {
    const writes = /\bConsole\.|\bconsole\.|\bstd(?:out|err)\.write\(|\.stdout\(\)/
    const writing = ["cli", "load"].flatMap((folder) =>
      readdirSync(new URL(`../../src/${folder}`, import.meta.url))
        .map((name) => `${folder}/${name}`)
        .filter((file) => writes.test(readFileSync(new URL(`../../src/${file}`, import.meta.url), "utf8"))),
    )
    // The second prints help, of our own making.
    assert.deepStrictEqual(writing, ["cli/output.ts", "cli/usage.ts"])
  })
})
