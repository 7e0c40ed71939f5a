use super::*;

fn document(text: &str) -> Document {
    Document { path: "layers/mine/recipes/web/web.toml".into(), text: text.to_owned() }
}

fn refusal(text: &str) -> String {
    document(text).parse::<Recipe>().unwrap_err().to_string()
}

#[test]
fn a_refusal_names_file_line_and_field() {
    assert_eq!(
        refusal("description = \"x\"\n\n[[files]]\npath = \"/a\"\nmodes = \"0644\"\n"),
        "layers/mine/recipes/web/web.toml:5: files[0].modes: unknown field `modes`, expected one of `path`, `source`, \
         `text`, `input`, `substitute`, `mode`, `owner`, `group`"
    );
    let wrong_type = refusal("packages = [\n  \"nginx\",\n  7,\n]\n");
    assert!(
        wrong_type.starts_with("layers/mine/recipes/web/web.toml:3: packages[1]: invalid type"),
        "{wrong_type}"
    );
    let broken = refusal("description = \"x\"\npackages = [\n");
    assert!(broken.starts_with("layers/mine/recipes/web/web.toml:"), "{broken}");
}

#[test]
fn an_error_found_later_names_its_field_too() {
    let document = document("[units]\nenable = [\"a.service\"]\n[[files]]\npath = \"/a\"\nmode = \"rw\"\n");
    let recipe: Recipe = document.parse().unwrap();
    let mode = recipe.files[0].mode.as_ref().unwrap();
    let error = document.error(mode.span(), octal_mode(mode.get_ref()).unwrap_err()).to_string();
    assert_eq!(
        error,
        "layers/mine/recipes/web/web.toml:5: files[0].mode: \"rw\" is no mode: write it in octal, as in \"0644\""
    );
}

#[test]
fn paths_stay_inside() {
    assert_eq!(image_path("/etc/hostname"), Ok("etc/hostname"));
    for bad in ["etc/hostname", "/", "/etc/../x", "/etc//x", "/./x", "/a\nb", "/etc/"] {
        assert!(image_path(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn modes_are_octal() {
    assert_eq!(octal_mode("0644"), Ok(0o644));
    assert_eq!(octal_mode("4754"), Ok(0o4754));
    for bad in ["", "9", "644x", "00644", "+644", "0888"] {
        assert!(octal_mode(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn our_own_boards_and_layouts_are_sound() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut boards = 0;
    for entry in std::fs::read_dir(root.join("../board-configs")).unwrap() {
        let path = entry.unwrap().path();
        let board: Board = Document::read(&path).unwrap().parse().unwrap();
        let layout = root.join("layouts").join(format!("{}.toml", board.layout));
        Document::read(&layout).unwrap().parse::<Layout>().unwrap();
        let suite = root.join("suites").join(format!("{}.toml", board.suite));
        Document::read(&suite).unwrap().parse::<Suite>().unwrap();
        boards += 1;
    }
    assert!(boards >= 4);
}
