// What ali-oss does against the sandbox: one line of JSON for each call, {"name": …, "error": … or null}.
//
//     node ali_oss_calls.js FOLDER    FOLDER has node_modules/ali-oss; endpoint and keys are in OSS_* variables
//
// `python -m tests.contract.peers --ali-oss FOLDER` runs it. Nothing of ali-oss is part of this project.
"use strict";

const assert = require("node:assert");
const fs = require("node:fs");
const path = require("node:path");
const { Readable } = require("node:stream");

const OSS = require(require.resolve("ali-oss", { paths: [process.argv[2]] }));
const urllib = require(require.resolve("urllib", { paths: [require.resolve("ali-oss", { paths: [process.argv[2]] })] }));

const bucket = process.env.OSS_BUCKET;
const client = new OSS({
  accessKeyId: process.env.OSS_ACCESS_KEY_ID,
  accessKeySecret: process.env.OSS_ACCESS_KEY_SECRET,
  region: `oss-${process.env.OSS_REGION}`,
  endpoint: process.env.OSS_ENDPOINT, // localhost: of an IP address it makes the service's public host
  sldEnable: true,
  authorizationV4: process.env.OSS_AUTH === "v4",
  bucket,
});

async function refused(code, promise) {
  const error = await promise.then(() => null, (reason) => reason);
  assert(error, `${code} was expected`);
  assert.strictEqual(error.code || error.name, code);
}

async function fetched(url, options) {
  const { data, status } = await urllib.request(url, options);
  assert.strictEqual(status, 200, String(data));
  return String(data);
}

const odd = ["a b+/é", "x/%2F?&=#.bin", "tab\there", "quote'\"<>", "日本語/🎉"];
const part = Buffer.alloc(300 * 1024, "p");
const file = path.join(process.env.OSS_FOLDER, "upload.bin");

const calls = {
  putBucket: () => client.putBucket(bucket),
  "putBucketACL, getBucketACL": async () => {
    await client.putBucketACL(bucket, "private");
    assert.strictEqual((await client.getBucketACL(bucket)).acl, "private");
  },
  getBucketInfo: async () => assert.strictEqual((await client.getBucketInfo(bucket)).bucket.Name, bucket),
  getBucketStat: async () => assert((await client.getBucketStat(bucket)).stat),
  getBucketLocation: async () => assert((await client.getBucketLocation(bucket)).location),
  listBuckets: async () => assert((await client.listBuckets()).buckets.some((found) => found.name === bucket)),
  "put, get, head": async () => {
    await client.put("plain", Buffer.from("hello"), { meta: { uid: 1 }, headers: { "Cache-Control": "no-cache" } });
    assert.strictEqual(String((await client.get("plain")).content), "hello");
    const { meta, res } = await client.head("plain");
    assert.deepStrictEqual([meta.uid, res.headers["cache-control"]], ["1", "no-cache"]);
  },
  "get, range": async () => {
    const { content, res } = await client.get("plain", { headers: { Range: "bytes=1-2" } });
    assert.deepStrictEqual([String(content), res.status], ["el", 206]);
  },
  "get, 304 and 412": async () => {
    const { res } = await client.head("plain");
    await refused("PreconditionFailed", client.get("plain", { headers: { "If-Match": '"0"' } }));
    const same = await client.head("plain", { headers: { "If-None-Match": res.headers.etag } });
    assert.strictEqual(same.status, 304);
  },
  getObjectMeta: async () => assert.strictEqual((await client.getObjectMeta("plain")).res.headers["content-length"], "5"),
  putMeta: async () => {
    await client.putMeta("plain", { uid: 2 });
    assert.strictEqual((await client.head("plain")).meta.uid, "2");
  },
  "put, get of a file": async () => {
    fs.writeFileSync(file, part);
    await client.put("file", file);
    await client.get("file", `${file}.back`);
    assert(fs.readFileSync(`${file}.back`).equals(part));
  },
  "putStream, getStream": async () => {
    await client.putStream("stream", Readable.from([Buffer.from("one"), Buffer.from("two")]));
    let text = "";
    for await (const chunk of (await client.getStream("stream")).stream) text += chunk;
    assert.strictEqual(text, "onetwo");
  },
  "odd names": async () => {
    for (const name of odd) {
      await client.put(name, Buffer.from(name));
      assert.strictEqual(String((await client.get(name)).content), name);
    }
  },
  "list, with encoding": async () => {
    const { objects } = await client.list({ "encoding-type": "url", "max-keys": 100 });
    const seen = objects.map((found) => decodeURIComponent(found.name)); // ali-oss leaves it to its caller
    for (const name of odd) assert(seen.includes(name), name);
  },
  "list, pages and prefixes": async () => {
    for (const name of ["d/1", "d/2", "d/x/1"]) await client.put(name, Buffer.from("x"));
    const first = await client.list({ prefix: "d/", delimiter: "/", "max-keys": 2 });
    const rest = await client.list({ prefix: "d/", delimiter: "/", marker: first.nextMarker, "max-keys": 2 });
    assert.deepStrictEqual([first.objects.length, rest.prefixes], [2, ["d/x/"]]);
  },
  "listV2, pages with encoding": async () => {
    const seen = [];
    let token;
    do {
      const query = { "max-keys": 2, "encoding-type": "url", ...(token && { "continuation-token": token }) };
      const page = await client.listV2(query);
      seen.push(...page.objects.map((found) => decodeURIComponent(found.name)));
      token = page.nextContinuationToken;
    } while (token);
    for (const name of odd) assert(seen.includes(name), name);
  },
  copy: async () => {
    await client.copy("copied", "plain");
    assert.strictEqual((await client.head("copied")).meta.uid, "2");
    await client.copy("replaced", "plain", { meta: { other: "y" } });
    assert.deepStrictEqual((await client.head("replaced")).meta, { other: "y" });
  },
  "putACL, getACL": async () => {
    await client.putACL("plain", "public-read");
    assert.strictEqual((await client.getACL("plain")).acl, "public-read");
  },
  "object tags": async () => {
    await client.putObjectTagging("plain", { a: "1", b: "2" });
    assert.deepStrictEqual((await client.getObjectTagging("plain")).tag, { a: "1", b: "2" });
    await client.deleteObjectTagging("plain");
    assert.deepStrictEqual((await client.getObjectTagging("plain")).tag, {});
  },
  append: async () => {
    const { nextAppendPosition } = await client.append("log", Buffer.from("one"));
    await client.append("log", Buffer.from("two"), { position: nextAppendPosition });
    assert.strictEqual(String((await client.get("log")).content), "onetwo");
    await refused("PositionNotEqualToLength", client.append("log", Buffer.from("x"), { position: "1" }));
  },
  multipartUpload: async () => {
    await client.multipartUpload("parts", file, { partSize: 102400, parallel: 2 });
    assert((await client.get("parts")).content.equals(part));
  },
  "multipart calls": async () => {
    const { uploadId } = await client.initMultipartUpload("calls");
    const { etag } = await client.uploadPart("calls", uploadId, 1, file, 0, part.length);
    assert.strictEqual([].concat((await client.listParts("calls", uploadId)).parts).length, 1);
    assert((await client.listUploads({ "max-uploads": 10 })).uploads.some((found) => found.uploadId === uploadId));
    await client.completeMultipartUpload("calls", uploadId, [{ number: 1, etag }]);
    const second = await client.initMultipartUpload("calls");
    await client.abortMultipartUpload("calls", second.uploadId);
    await refused("NoSuchUpload", client.listParts("calls", second.uploadId));
  },
  multipartUploadCopy: async () => {
    const source = { sourceKey: "parts", sourceBucketName: bucket };
    await client.multipartUploadCopy("parts-copy", source, { partSize: 102400 });
    assert((await client.get("parts-copy")).content.equals(part));
  },
  "putSymlink, getSymlink": async () => {
    await client.putSymlink("link", "plain");
    assert.strictEqual((await client.getSymlink("link")).targetName, "plain");
    assert.strictEqual(String((await client.get("link")).content), "hello");
  },
  restore: async () => {
    await client.put("cold", Buffer.from("x"), { headers: { "x-oss-storage-class": "ColdArchive" } });
    await refused("InvalidObjectState", client.get("cold"));
    await client.restore("cold", { type: "ColdArchive", Days: 2, JobParameters: "Expedited" });
    assert.match((await client.head("cold")).res.headers["x-oss-restore"], /ongoing-request="true"/);
    await client.put("archive", Buffer.from("x"), { headers: { "x-oss-storage-class": "Archive" } });
    await client.restore("archive");
  },
  encryption: async () => {
    await client.putBucketEncryption(bucket, { SSEAlgorithm: "AES256" });
    assert.strictEqual((await client.getBucketEncryption(bucket)).encryption.SSEAlgorithm, "AES256");
    const { res } = await client.put("sealed", Buffer.from("x"));
    assert.strictEqual(res.headers["x-oss-server-side-encryption"], "AES256");
    await client.deleteBucketEncryption(bucket);
  },
  "signed URL": async () => {
    const url = process.env.OSS_AUTH === "v4"
      ? await client.signatureUrlV4("GET", 60, {}, "plain")
      : client.signatureUrl("plain", { expires: 60 });
    assert.strictEqual(await fetched(url), "hello");
  },
  "signed URL, put": async () => {
    const url = process.env.OSS_AUTH === "v4"
      ? await client.signatureUrlV4("PUT", 60, {}, "by-url")
      : client.signatureUrl("by-url", { method: "PUT" });
    await fetched(url, { method: "PUT", content: "sent" });
    assert.strictEqual(String((await client.get("by-url")).content), "sent");
  },
  deleteMulti: async () => {
    const names = [...odd, "form\ffeed"];
    await client.put("form\ffeed", Buffer.from("x"));
    const { deleted } = await client.deleteMulti(names, { quiet: false });
    assert.strictEqual(deleted.length, names.length);
    for (const name of names) await refused("NoSuchKey", client.head(name).catch((error) => client.get(name)));
  },
  delete: async () => {
    await client.delete("plain");
    await refused("NoSuchKey", client.get("plain"));
    await client.delete("plain");
  },
  "wrong bucket": () => refused("NoSuchBucket", client.getBucketInfo(`${bucket}-none`)),
  worm: async () => {
    const { wormId } = await client.initiateBucketWorm(bucket, "1");
    assert.strictEqual((await client.getBucketWorm(bucket)).wormId, wormId);
    await refused("FileImmutable", client.delete("file"));
    await client.abortBucketWorm(bucket);
  },
  "versions, by id": async () => {
    await client.putBucketVersioning(bucket, "Enabled");
    assert.strictEqual((await client.getBucketVersioning(bucket)).versionStatus, "Enabled");
    const { res } = await client.put("v", Buffer.from("one"));
    await client.put("v", Buffer.from("two"));
    const versionId = res.headers["x-oss-version-id"];
    assert.strictEqual(String((await client.get("v", undefined, { versionId })).content), "one");
    await client.head("v", { versionId });
    await client.copy("v-copy", "v", { versionId });
    await client.deleteMulti([{ key: "v", versionId }], { quiet: true });
    await refused("NoSuchVersion", client.get("v", undefined, { versionId }));
  },
  "versions, listed by prefix": async () => {
    const { objects } = await client.listObjectVersions({ prefix: "v" });
    assert.deepStrictEqual(objects.map((found) => found.name), ["v", "v-copy"]);
  },
  "versions, grouped": async () => {
    const { prefixes } = await client.getBucketVersions({ delimiter: "/" });
    assert.deepStrictEqual(prefixes, ["d/"]);
  },
};

(async () => {
  for (const [name, call] of Object.entries(calls)) {
    const error = await Promise.resolve().then(call).then(() => null, (reason) => `${reason.name}: ${reason.message}`);
    console.log(JSON.stringify({ name, error }));
  }
})();
