//! Tags, and what is listed.

use super::*;

/// A tag keeps its digest and the time of its last validation.
#[tokio::test]
async fn tag_keeps_digest_and_validation_time() {
    let (place, store) = Place::opened().await;
    let (tag, digest) = ("latest".parse().unwrap(), digest(b"{}"));
    assert_eq!(store.tag(&nginx(), &tag).await.unwrap(), None);
    store.put_tag(&nginx(), &tag, &digest).await.unwrap();
    place.clock.advance(HOUR);
    let cached = store.tag(&nginx(), &tag).await.unwrap().unwrap();
    assert!(cached.proven && cached.digest == digest);
    assert!(place.clock.since(cached.validated) >= HOUR);
}

/// A validation survives a restart and rewrites no link.
#[tokio::test]
async fn validation_survives_restart_without_link_write() {
    let (place, store) = Place::opened().await;
    let (tag, digest) = ("latest".parse().unwrap(), digest(b"{}"));
    store.put_tag(&nginx(), &tag, &digest).await.unwrap();
    let link = place
        .v2()
        .join("repositories/library/nginx/_manifests/tags/latest/current/link");
    let written = fs::metadata(&link).unwrap().modified().unwrap();
    place.clock.advance(HOUR);
    store.put_tag(&nginx(), &tag, &digest).await.unwrap();
    store.flush().await;
    drop(store);
    let cached = place.open().await.tag(&nginx(), &tag).await.unwrap().unwrap();
    assert!(cached.proven && place.clock.since(cached.validated) < HOUR);
    assert_eq!(fs::metadata(&link).unwrap().modified().unwrap(), written);
}

/// A moved tag is proven after a restart without a flush.
#[tokio::test]
async fn moved_tag_is_proven_after_restart_unflushed() {
    let (place, store) = Place::opened().await;
    let tag = "latest".parse().unwrap();
    store.put_tag(&nginx(), &tag, &digest(b"1")).await.unwrap();
    store.put_tag(&nginx(), &tag, &digest(b"1")).await.unwrap();
    store.put_tag(&nginx(), &tag, &digest(b"2")).await.unwrap();
    drop(store);
    let cached = place.open().await.tag(&nginx(), &tag).await.unwrap().unwrap();
    assert_eq!((cached.digest, cached.proven), (digest(b"2"), true));
}

/// A tag that was never validated is known but not proven.
#[tokio::test]
async fn unvalidated_tag_is_not_proven() {
    let place = Place::new();
    let link = place
        .v2()
        .join("repositories/library/nginx/_manifests/tags/old/current");
    fs::create_dir_all(&link).unwrap();
    fs::write(link.join("link"), digest(b"{}").as_str()).unwrap();
    let cached = place
        .open()
        .await
        .tag(&nginx(), &"old".parse().unwrap())
        .await
        .unwrap()
        .unwrap();
    assert_eq!((cached.digest, cached.proven), (digest(b"{}"), false));
}

#[tokio::test]
async fn tags_and_repositories_are_listed_sorted() {
    let (_place, store) = Place::opened().await;
    for tag in ["b", "a", "B"] {
        store
            .put_tag(&nginx(), &tag.parse().unwrap(), &digest(b"{}"))
            .await
            .unwrap();
    }
    put(&store, &repository("quay.io", "org/app"), b"1").await;
    put(&store, &repository("docker.io", "a/b/c"), b"2").await;
    put(&store, &repository("docker.io", "a"), b"3").await;
    assert_eq!(store.tags(&nginx()).await.unwrap(), ["B", "a", "b"]);
    assert_eq!(
        store.tags(&repository("quay.io", "org/app")).await.unwrap(),
        Vec::<String>::new()
    );
    let repositories = store.repositories(None, |_| true).await.unwrap().names;
    let repositories: Vec<_> = repositories.into_iter().collect();
    assert_eq!(repositories, ["a", "a/b/c", "library/nginx", "quay.io/org/app"]);
}

#[tokio::test]
async fn changed_default_never_mixes_tags() {
    let (place, store) = Place::opened().await;
    let tag = "latest".parse().unwrap();
    store.put_tag(&nginx(), &tag, &digest(b"hub")).await.unwrap();
    drop(store);
    let store = place.open_for("quay.io").await;
    let there = repository("quay.io", "library/nginx");
    assert_eq!(store.tag(&there, &tag).await.unwrap(), None);
    let cached = store.tag(&nginx(), &tag).await.unwrap().unwrap();
    assert_eq!((cached.digest, cached.proven), (digest(b"hub"), true));
}
