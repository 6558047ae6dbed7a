//! Answers of vbrd, as JSON.

pub fn session(state: &str, processed: u64) -> String {
    let over = matches!(state, "succeeded" | "warning" | "failed" | "cancelled");
    let ended = if over { "\"2026-11-22T19:00:42Z\"" } else { "null" };
    let point = if matches!(state, "succeeded" | "warning") { "\"20261122t190042z-3fa2\"" } else { "null" };
    let consistent = match state {
        "succeeded" => "true",
        "warning" => "false",
        _ => "null",
    };
    let warnings = if state == "warning" { "[\"/srv/vm/web.img changed while it was read\"]" } else { "[]" };
    let error = if state == "failed" {
        r#"{"code":"datastore_full","what":"Cannot write at dr","why":"the datastore is full","next_step":"free space at dr","retry":true}"#
    } else {
        "null"
    };
    format!(
        r#"{{"schema":1,"session":"20261122t190000z-77aa","job":"web","peer":"dr","state":"{state}","started_at":"2026-11-22T19:00:00Z","ended_at":{ended},
"disks":[{{"path":"/srv/vm/web.img","format":"raw","virtual_bytes":10737418240,"processed_bytes":{processed},"read_bytes":{processed},"changed_bytes":268435456,"sent_bytes":41943040,"snapshot":"clone"}}],
"bytes":{{"virtual":10737418240,"read":{processed},"changed":268435456,"zero":0,"freed":0,"deduplicated":167772160,"delta_base":16777216,"sent_payload":41000000,"sent_wire":41943040,"received_wire":1048576,"resent":0}},
"chunks":{{"total":163840,"unchanged":159744,"known":2560,"delta":256,"literal":1280}},"rate_wire_bps":8000000,"eta_ms":42000,
"stage_load_percent":{{"source_host":10,"source_mover":12,"source_accelerator":31,"network":97,"target_accelerator":9,"target_mover":4,"target_host":3}},
"bottleneck":"network","mode":"incremental","transport_mode":"direct","resumed":0,"restore_point":{point},"consistent":{consistent},"warnings":{warnings},"error":{error},"a_later_field":{{"x":1}}}}"#
    )
}

pub fn job(name: &str) -> String {
    format!(
        r#"{{"schema":1,"name":"{name}","disks":[{{"path":"/srv/vm/web.img","format":"raw"}}],"target":"dr","keep":14,"enabled":true,"created_at":"2026-11-20T10:00:00Z","running":null,"last_session":"20261122t190000z-77aa","last_state":"succeeded","last_success_at":"2026-11-22T19:00:42Z","rpo_lag_ms":185000}}"#
    )
}

pub fn peer(name: &str, connected: bool) -> String {
    let link = if connected {
        r#""connected":true,"transport":"tcp","congestion_control":"bbr","rtt_ms":80"#
    } else {
        r#""connected":false,"transport":null,"congestion_control":null,"rtt_ms":null"#
    };
    format!(
        r#"{{"schema":1,"name":"{name}","peer_id":"12D3KooWExample","addresses":["/ip4/192.0.2.7/tcp/7300"],{link},"sent_wire":41943040,"received_wire":1048576,"domain":"default","grants":["replicate"],"paired_at":"2026-11-20T10:00:00Z","last_seen_at":"2026-11-22T18:00:00Z","last_error":null}}"#
    )
}

pub fn status() -> String {
    format!(
        r#"{{"schema":1,"site":"branch","peer_id":"12D3KooWBranch","version":"0.1.0","started_at":"2026-11-20T10:00:00Z","listeners":["/ip4/0.0.0.0/tcp/7300"],
"peers":[{},{}],"sessions":[{}],"jobs":[{{"job":"web","enabled":true,"rpo_lag_ms":185000,"last_state":"succeeded"}},{{"job":"mail","enabled":false,"rpo_lag_ms":null,"last_state":null}}],
"datastores":[{{"name":"default","path":"/var/lib/vbr/datastore","backend":"reflink","size_bytes":1099511627776,"free_bytes":549755813888,"reserve_bytes":10737418240}}],
"warnings":[{{"level":"critical","what":"peer hq is not connected","next_step":"check its address"}}]}}"#,
        peer("dr", true),
        peer("hq", false),
        session("running", 5_368_709_120)
    )
}

pub fn point(virtual_bytes: u64) -> String {
    format!(
        r#"{{"schema":1,"id":"20261122t190042z-3fa2","replica":"web","site":"branch","session":"20261122t190000z-77aa","state":"sealed","snapshot_at":"2026-11-22T19:00:00Z","sealed_at":"2026-11-22T19:00:42Z","base":null,"consistent":true,
"disks":[{{"index":0,"source_path":"/srv/vm/web.img","virtual_bytes":{virtual_bytes},"root":"aa","file":"disk-0.raw","format":"raw"}}],"changed_bytes":268435456,"verified_at":null,"verified_ok":null}}"#
    )
}

pub fn replica() -> String {
    r#"{"schema":1,"name":"web","site":"branch","datastore":"default","backend":"reflink","path":"/var/lib/vbr/datastore/branch/web","points":3,"virtual_bytes":10737418240,"stored_bytes":3221225472,"latest":"20261122t190042z-3fa2","latest_at":"2026-11-22T19:00:00Z","building":null,"keep":14}"#.into()
}

pub fn report(ok: bool) -> String {
    let (bad, list) = if ok {
        (0, String::new())
    } else {
        (1, r#"{"disk":0,"offset":1048576,"why":"content differs from the manifest"}"#.to_string())
    };
    format!(
        r#"{{"schema":1,"point":"branch/web@20261122t190042z-3fa2","ok":{ok},"read_bytes":268435456,"chunks":4096,"bad_chunks":{bad},"bad":[{list}],"duration_ms":1500}}"#
    )
}

pub fn list(items: &[String]) -> String {
    format!("{{\"schema\":1,\"items\":[{}]}}", items.join(","))
}
