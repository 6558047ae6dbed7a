//! The bill of materials of the package, as CycloneDX 1.5 in JSON: our crates, every crate of the registry that is part of
//! the programs or builds them, and the C and C++ that some of them bring along.
//!
//! The same for the same lock file: no time, no random serial number. Pure but for nothing; checks itself before it answers.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::bundled::{self, Bundled};
use super::check::Lock;
use super::{Metadata, Package, Reach, Reached};

/// Our packages whose programs are packed.
pub const PACKED: &[&str] = &["vbr-appliance", "vbrctl"];

/// The whole document for the package in this version; `reached` from what is `packed`.
pub fn document(
    metadata: &Metadata,
    reached: &Reached,
    lock: &Lock,
    version: &str,
    packed: &[&str],
) -> Result<Value> {
    let reached = metadata.reached(reached);
    let (mut components, mut dependencies) = (Vec::new(), Vec::new());
    for (id, reach) in reached.iter().filter(|(_, reach)| **reach != Reach::Test) {
        let package =
            metadata.package(id).with_context(|| format!("cargo metadata does not describe {id}"))?;
        let checksum = lock.checksum(&package.name, &package.version);
        ensure!(
            package.source.is_none() || checksum.is_some(),
            "Cargo.lock has no checksum of {} {}",
            package.name,
            package.version
        );
        components.push(component(package, *reach, checksum));
        let needs = metadata.needs(id).into_iter();
        let needs = needs.filter(|need| reached.get(need).is_some_and(|reach| *reach != Reach::Test));
        let mut refs: BTreeSet<String> = needs.filter_map(|need| metadata.package(need)).map(purl).collect();
        if let Some(part) = bundled_component(package, *reach)? {
            refs.insert(reference(&part));
            dependencies.push(json!({ "ref": reference(&part), "dependsOn": [] }));
            components.push(part);
        }
        dependencies.push(json!({ "ref": purl(package), "dependsOn": refs }));
    }
    let root = format!("pkg:deb/vbr/vbr@{version}");
    let packed: Vec<String> =
        metadata.own().filter(|own| packed.contains(&own.name.as_str())).map(purl).collect();
    dependencies.insert(0, json!({ "ref": root, "dependsOn": packed }));
    let document = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application", "bom-ref": root, "name": "vbr", "version": version, "purl": root,
                "licenses": [{ "license": { "id": "Apache-2.0" } }],
            },
        },
        "components": components,
        "dependencies": dependencies,
    });
    validate(&document)?;
    Ok(document)
}

/// What the format demands and what makes it of use: unique references, nothing that points nowhere, a version each.
pub fn validate(document: &Value) -> Result<()> {
    ensure!(document["bomFormat"] == "CycloneDX" && document["specVersion"] == "1.5", "no CycloneDX 1.5");
    let list = |key: &str| document[key].as_array().cloned().unwrap_or_default();
    let mut references = BTreeSet::from([reference(&document["metadata"]["component"])]);
    for component in list("components") {
        for key in ["type", "name", "version", "purl", "bom-ref", "scope"] {
            let text = component[key].as_str().unwrap_or_default();
            ensure!(!text.is_empty(), "{} has no {key}", component["name"]);
        }
        ensure!(
            component["licenses"].as_array().is_some_and(|all| !all.is_empty()),
            "{component} has no licence"
        );
        ensure!(references.insert(reference(&component)), "{} is there twice", component["bom-ref"]);
    }
    ensure!(references.len() > 1, "there are no components");
    let mut described = BTreeSet::new();
    for dependency in list("dependencies") {
        let from = dependency["ref"].as_str().unwrap_or_default().to_owned();
        ensure!(references.contains(&from), "a dependency begins at {from}, which is no component");
        for to in dependency["dependsOn"].as_array().into_iter().flatten() {
            ensure!(
                references.contains(to.as_str().unwrap_or_default()),
                "{from} depends on {to}, which is no component"
            );
        }
        ensure!(described.insert(from.clone()), "{from} is described twice");
    }
    ensure!(described == references, "some components have no entry among the dependencies");
    Ok(())
}

fn component(package: &Package, reach: Reach, checksum: Option<&str>) -> Value {
    let expression = package.license.clone().unwrap_or_default().replace(" / ", "/").replace('/', " OR ");
    let mut component = json!({
        "type": "library",
        "bom-ref": purl(package),
        "name": package.name,
        "version": package.version,
        "scope": scope(reach),
        "licenses": [{ "expression": expression }],
        "purl": purl(package),
    });
    if let Some(checksum) = checksum {
        component["hashes"] = json!([{ "alg": "SHA-256", "content": checksum }]);
    }
    if let Some(repository) = &package.repository {
        component["externalReferences"] = json!([{ "type": "vcs", "url": repository }]);
    }
    component
}

fn bundled_component(package: &Package, reach: Reach) -> Result<Option<Value>> {
    let found = bundled::find(&package.name);
    ensure!(
        found.is_some() || package.links.is_none(),
        "{} brings or binds to the native library {:?}: say in tests/src/dependencies/bundled.rs what it is",
        package.name,
        package.links
    );
    let Some(Bundled::Sources { name, licence, purl, version }) = found else { return Ok(None) };
    let version = bundled::version(version, &package.version).with_context(|| {
        format!("{} {} does not say which {name} it brings", package.name, package.version)
    })?;
    let purl = format!("{purl}@{version}");
    Ok(Some(json!({
        "type": "library",
        // One of its own: the crate may be of the same project.
        "bom-ref": format!("{}#{purl}", package.name),
        "name": name,
        "version": version,
        "scope": scope(reach),
        "licenses": [{ "expression": licence }],
        "purl": purl,
        "description": format!("C and C++ compiled into the programs; its sources are in the crate {} {}", package.name, package.version),
    })))
}

/// What only builds the programs is not in them.
fn scope(reach: Reach) -> &'static str {
    if reach == Reach::Product { "required" } else { "excluded" }
}

fn purl(package: &Package) -> String {
    format!("pkg:cargo/{}@{}", package.name, package.version.replace('+', "%2B"))
}

fn reference(component: &Value) -> String {
    component["bom-ref"].as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::check::REGISTRY;
    use super::super::tests::{parsed, reached, sample};
    use super::*;

    fn lock() -> Lock {
        let sum = "b".repeat(64);
        let entry = |name: &str, version: &str| {
            format!(
                "[[package]]\nname = \"{name}\"\nversion = \"{version}\"\nsource = \"{REGISTRY}\"\nchecksum = \"{sum}\"\n"
            )
        };
        Lock::parse(
            &[entry("zstd-sys", "1.2.0+zstd.3.1.4"), entry("cc", "1.0.0"), entry("prop", "2.0.0")].concat(),
        )
        .unwrap()
    }

    /// The sample with a native library that has a row.
    fn native() -> Value {
        let text = sample().to_string().replace("zlib-sys 1.2.0+3.1.4", "zstd-sys 1.2.0+zstd.3.1.4");
        let text =
            text.replace("\"zlib-sys\"", "\"zstd-sys\"").replace("\"1.2.0+3.1.4\"", "\"1.2.0+zstd.3.1.4\"");
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn programs_crates_and_what_they_bring_are_listed() {
        let whole = document(&parsed(&native()), &reached(), &lock(), "1.0", &["app"]).unwrap();
        let of = |name: &str| {
            let all = whole["components"].as_array().unwrap();
            all.iter().find(|component| component["name"] == name).cloned().unwrap_or_default()
        };
        assert_eq!(of("zstd-sys")["purl"], "pkg:cargo/zstd-sys@1.2.0%2Bzstd.3.1.4");
        assert_eq!(of("zstd-sys")["hashes"][0]["content"], "b".repeat(64));
        assert_eq!(
            (of("Zstandard")["version"].clone(), of("Zstandard")["scope"].clone()),
            ("3.1.4".into(), "required".into())
        );
        assert_eq!(of("cc")["scope"], "excluded", "it builds, and is not in the programs");
        assert!(of("prop").is_null() && of("probe").is_null(), "tests are not packed");
        let all = whole["dependencies"].as_array().unwrap();
        let needs = all.iter().find(|entry| entry["ref"] == of("zstd-sys")["bom-ref"]).unwrap();
        assert_eq!(needs["dependsOn"].as_array().unwrap().len(), 2, "{needs}");
        assert_eq!(whole, document(&parsed(&native()), &reached(), &lock(), "1.0", &["app"]).unwrap());
    }

    #[test]
    fn what_is_not_known_is_an_error() {
        let error =
            document(&parsed(&sample()), &reached(), &lock(), "1.0", &["app"]).unwrap_err().to_string();
        assert!(error.contains("checksum of zlib-sys"), "{error}");
        let mut odd = native();
        odd["packages"][2]["links"] = "odd".into();
        let text = odd.to_string().replace("zstd-sys", "odd-sys");
        let odd = serde_json::from_str(&text).unwrap();
        let lock = Lock::parse(&format!(
            "[[package]]\nname = \"odd-sys\"\nversion = \"1.2.0+zstd.3.1.4\"\nchecksum = \"{}\"\n",
            "c".repeat(64)
        ))
        .unwrap();
        let mut reached = Reached::default();
        reached.enter("app v0.1.0\nodd-sys v1.2.0+zstd.3.1.4", Reach::Product).unwrap();
        let error = document(&parsed(&odd), &reached, &lock, "1.0", &["app"]).unwrap_err().to_string();
        assert!(error.contains("native library"), "{error}");
    }

    #[test]
    fn a_broken_document_is_found() {
        let good = document(&parsed(&native()), &reached(), &lock(), "1.0", &["app"]).unwrap();
        let broken = |change: &dyn Fn(&mut Value)| {
            let mut document = good.clone();
            change(&mut document);
            validate(&document).is_err()
        };
        assert!(broken(&|document| document["components"][0]["version"] = Value::Null));
        assert!(broken(&|document| document["components"][0]["licenses"] = json!([])));
        assert!(broken(&|document| document["components"][1] = document["components"][0].clone()));
        assert!(broken(
            &|document| document["dependencies"][1]["dependsOn"] = json!(["pkg:cargo/nothing@1.0.0"])
        ));
        assert!(broken(&|document| drop(document["dependencies"].as_array_mut().unwrap().pop())));
        assert!(broken(&|document| document["specVersion"] = "9".into()));
        assert!(!broken(&|_| {}));
    }
}
